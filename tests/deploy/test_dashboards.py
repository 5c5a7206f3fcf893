"""The dashboard and the alerts speak of what there is, in PromQL that is none of ours to be wrong about."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest
import yaml
from prometheus_client import ProcessCollector

from enclave_broker.metrics import Metrics
from enclave_protocol import Code
from enclave_worker.runtime import create_runtime_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parents[2] / "deploy" / "dashboards"
BROKER = Path(__file__).parents[2] / "broker" / "enclave_broker"
BOARD = json.loads((HERE / "enclave.json").read_text())
RULES = yaml.safe_load((HERE / "alerts.yaml").read_text())["groups"][0]["rules"]
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
OUTCOMES = {"ok", "TOOL_ERROR", *map(str, Code)}
FROM_SCRAPING = {"instance", "job"}

EXPRESSIONS = {f"{panel['title']}/{target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]}
EXPRESSIONS |= {rule["alert"]: rule["expr"] for rule in RULES}


def known() -> dict[str, set[str]]:
    """The labels of every sample that a program of ours shows, by its name; those of Prometheus itself too."""
    found: dict[str, set[str]] = {"up": set()}
    for registry in (Metrics().registry, create_runtime_worker().metrics.registry):
        for metric in registry._collector_to_names:
            if isinstance(metric, ProcessCollector):
                for family in metric.collect():
                    found |= {sample.name: set() for sample in family.samples}
                continue
            labels = set(getattr(metric, "_labelnames", ()))
            names = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric._type, [""])  # type: ignore[attr-defined]
            for suffix in names:
                more = {"le"} if suffix == "_bucket" else set()
                found[metric._name + suffix] = labels | more  # type: ignore[attr-defined]
    return found


KNOWN = known()


def selectors(expression: str) -> Iterator[Any]:
    """Every choice of samples in an expression; raises ValueError for one that is no PromQL."""
    found = [promql_parser.parse(expression.replace("$__rate_interval", "5m"))]
    while found:
        part = found.pop()
        if isinstance(part, promql_parser.VectorSelector):
            yield part
            continue
        below = [getattr(part, name, None) for name in ("expr", "lhs", "rhs", "vector_selector", "param")]
        found += [
            each for each in (*below, *getattr(part, "args", ())) if each is not None and not isinstance(each, str)
        ]


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_an_expression_is_promql_over_metrics_labels_and_outcomes_that_exist(where: str) -> None:
    chosen = list(selectors(EXPRESSIONS[where]))
    named = set(re.findall(r"\b(?:enclave|process)_\w+|\bup\b", EXPRESSIONS[where]))
    assert {selector.name for selector in chosen} == named, "a part of the expression was not looked at"
    for selector in chosen:
        assert selector.name in KNOWN, f"no metric {selector.name}"
        for matcher in selector.matchers.matchers:
            assert matcher.name in KNOWN[selector.name] | FROM_SCRAPING, f"{selector.name} has no label {matcher.name}"
            if matcher.name == "outcome" and selector.name == "enclave_sessions_total":
                assert set(matcher.value.split("|")) <= OUTCOMES
    grouped = [name for names in re.findall(r"by \(([^)]*)\)", EXPRESSIONS[where]) for name in names.split(", ")]
    assert set(grouped) <= set().union(*(KNOWN[selector.name] for selector in chosen)) | FROM_SCRAPING


@pytest.mark.parametrize("wrong", ["sum(rate(", "enclave_sessions_total{outcome=}", "sum by x (y)"])
def test_what_is_no_promql_would_be_found(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"."):  # whatever the parser says
        list(selectors(wrong))


def test_a_metric_that_does_not_exist_would_be_found() -> None:
    [selector] = selectors("sum(rate(enclave_no_such_metric_total[5m])) > 1")
    assert selector.name not in KNOWN


def test_legends_name_labels_that_their_expression_leaves() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                left = FROM_SCRAPING | set().union(*(KNOWN[each.name] for each in selectors(target["expr"])))
                assert label in left, f"{panel['title']}: {label}"


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    cells = [
        (x, y)
        for where in (panel["gridPos"] for panel in BOARD["panels"])
        for x in range(where["x"], where["x"] + where["w"])
        for y in range(where["y"], where["y"] + where["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_every_alert_says_what_is_wrong_and_what_to_do_and_how_urgent_it_is() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_states_that_alerts_ask_for_are_those_that_a_broker_shows() -> None:
    source = (BROKER / "metrics.py").read_text() + (BROKER / "tools" / "sources" / "keeper.py").read_text()
    for expression in EXPRESSIONS.values():
        for selector in selectors(expression):
            for matcher in selector.matchers.matchers:
                if matcher.name == "state":
                    for state in matcher.value.split("|"):
                        assert f'"{state}"' in source, state
