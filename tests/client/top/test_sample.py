"""What two answers of a broker say of the time between them."""

from __future__ import annotations

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from enclave_broker.metrics import Metrics as BrokerMetrics
from enclave_client.top.sample import COUNTED, TIMED, Fleet, Metrics, Queue, Sample, between, quantile, read_metrics
from enclave_client.top.sample import restarted as is_restarted

INF = float("inf")


def fleet(**changes: object) -> Fleet:
    plain = Fleet(version="1", started_at=0, now=0, active=0, workers=[], queue=Queue(0, 10), tenants=[])
    return msgspec.structs.replace(plain, **changes)


def counted(name: str, label: str, **values: float) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    return {name: {frozenset({(label, key)}): value for key, value in values.items()}}


def test_every_metric_that_is_read_is_one_that_the_broker_has() -> None:
    names = {sample.name for family in BrokerMetrics().registry.collect() for sample in family.samples}
    names |= {f"{family.name}_total" for family in BrokerMetrics().registry.collect() if family.type == "counter"}
    assert names >= COUNTED
    assert names >= {f"{name}_bucket" for name in TIMED}


def test_rates_are_of_what_was_counted_in_between() -> None:
    before = Metrics(counted("enclave_sessions_total", "outcome", ok=10) | counted("enclave_sessions_active", "", x=3))
    after = Metrics(
        counted("enclave_sessions_total", "outcome", ok=30, EXECUTION_ERROR=2)
        | counted("enclave_sessions_active", "", x=5)
        | counted("enclave_rejections_total", "code", NO_CAPACITY=8)
        | counted("enclave_tool_calls_total", "outcome", ok=4)
    )
    happened = between(Sample(100.0, fleet(), before), Sample(102.0, fleet(), after))
    assert happened.ended == {"ok": 10.0, "EXECUTION_ERROR": 1.0}
    assert happened.started == 12.0
    assert happened.refused == {"NO_CAPACITY": 4.0}
    assert happened.tool_calls == 2.0


def test_what_did_not_move_has_no_rate() -> None:
    same = Metrics(counted("enclave_sessions_total", "outcome", ok=10))
    assert between(Sample(0.0, fleet(), same), Sample(1.0, fleet(), same)).ended == {}


def test_latencies_are_of_the_observations_in_between_only() -> None:
    name = "enclave_session_duration_seconds"
    before = Metrics({}, {name: {0.1: 100.0, 1.0: 100.0, INF: 100.0}})
    after = Metrics({}, {name: {0.1: 100.0, 1.0: 110.0, INF: 110.0}})
    [latency, *others] = between(Sample(0.0, fleet(), before), Sample(1.0, fleet(), after)).latencies
    assert (latency.name, latency.count) == ("session", 10.0)
    assert latency.p50_s == pytest.approx(0.1 + 0.9 * 0.5)
    assert [other.p99_s for other in others] == [None, None, None]


@pytest.mark.parametrize(
    ("share", "expected"), [(0.4, 0.05), (0.8, 0.1), (0.89, 0.1 + 0.9 * 0.5), (0.98, 1.0), (0.99, 1.0)]
)
def test_a_quantile_lies_within_its_bucket_and_of_the_last_is_where_it_begins(share: float, expected: float) -> None:
    assert quantile(share, {0.1: 80.0, 1.0: 98.0, INF: 100.0}) == pytest.approx(expected)


def test_of_nothing_there_is_no_quantile() -> None:
    assert quantile(0.5, {}) is None
    assert quantile(0.5, {0.1: 0.0, INF: 0.0}) is None


def test_an_exposition_is_read_as_prometheus_reads_it() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("enclave_queue_wait_seconds", "x", buckets=(0.1, 1), registry=registry)
    histogram.observe(0.05)
    histogram.observe(5)
    read = read_metrics(generate_latest(registry).decode())
    assert read.buckets == {"enclave_queue_wait_seconds": {0.1: 1.0, 1.0: 1.0, INF: 2.0}}


def test_a_broker_that_was_started_at_another_time_is_another() -> None:
    first, second = (Sample(0.0, fleet(started_at=when), Metrics()) for when in (1, 2))
    assert is_restarted(first, second)
    assert not is_restarted(first, first)
