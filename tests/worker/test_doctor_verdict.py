"""What the answers mean: the level, and what to do for the next one. Of made-up answers."""

from __future__ import annotations

import pytest

from enclave_worker.doctor_needs import Answer, Need
from enclave_worker.doctor_verdict import Check, Diagnosis, Start, judge, render, starts_of
from enclave_worker.sandbox.levels import LEVELS, Layer
from tests.worker.doctor_hosts import host


def diagnosis(*missing: Layer | str, fails: tuple[str, ...] = (), asked: str = "") -> Diagnosis:
    """What would be found where a need of each of these layers is missing, and workers fail at these levels."""
    layers = [*Layer, "every level", "no level"]
    checks = tuple(
        judge(
            Need(probe="p", name=f"need of {layer}", needed_for="it", fix=lambda _host, _a: "mend\nthis", layer=layer),
            host(),
            Answer(ok=layer not in missing, found="this"),
        )
        for layer in layers
    )
    starts = starts_of(checks, asked, lambda level: Start(level=level, ok=level.name not in fails, said="so"))
    return Diagnosis(checks=checks, starts=tuple(starts))


@pytest.mark.parametrize(
    ("missing", "level"),
    [
        ((), "STRICT"),
        (("no level",), "STRICT"),
        ((Layer.OWN_USER,), "SECURE"),
        ((Layer.LANDLOCK,), "STANDARD"),
        ((Layer.CONTROL_GROUPS, Layer.OWN_USER), "STANDARD"),
        ((Layer.NAMESPACES,), None),
        (("every level",), None),
    ],
)
def test_the_level_is_the_strictest_whose_layers_are_all_there(
    missing: tuple[Layer | str, ...], level: str | None
) -> None:
    found = diagnosis(*missing).level

    assert (found.name if found else None) == level


def test_a_level_at_which_no_worker_starts_is_not_given_whatever_the_checks_say() -> None:
    found = diagnosis(fails=("STRICT", "SECURE"))

    assert found.level == LEVELS["STANDARD"]
    assert "Nothing is missing for STRICT, SECURE, and yet no worker starts: please report it." in render(found)


@pytest.mark.parametrize(
    ("missing", "given"),
    [
        ((), {"STRICT", "SECURE", "STANDARD", "PERMISSIVE", "BEST"}),
        ((Layer.CONTROL_GROUPS,), {"STANDARD", "PERMISSIVE", "BEST"}),
        ((Layer.NAMESPACES,), {"PERMISSIVE"}),
        (("every level",), set()),
    ],
)
def test_a_level_is_given_if_a_worker_started_at_it(missing: tuple[Layer | str, ...], given: set[str]) -> None:
    assert {name for name in (*LEVELS, "BEST") if diagnosis(*missing, asked=name).gives(name)} == given


def test_the_advice_is_for_the_next_level_only() -> None:
    text = render(diagnosis(Layer.CONTROL_GROUPS, Layer.OWN_USER))

    assert "\nFor SECURE:\n  need of control groups: mend\n    this\n" in text
    assert "STRICT:" not in text
    assert text.endswith("Start workers with: enclave-runtime --level STANDARD\n\nThis host gives STANDARD.")


def test_one_piece_of_advice_is_given_once() -> None:
    text = render(diagnosis(Layer.CONTROL_GROUPS, Layer.LANDLOCK, "no level"))

    assert text.count("  need of control groups, need of Landlock: mend") == 1
    assert "need of no level:" not in text


def test_the_advice_is_for_the_level_that_was_asked_about() -> None:
    text = render(diagnosis(Layer.CONTROL_GROUPS, Layer.OWN_USER), "STRICT")

    assert "For STRICT:\n  need of control groups, need of own host user: mend" in text
    assert text.endswith("This host gives STANDARD, not STRICT.")


def test_with_the_highest_level_nothing_is_left_to_mend() -> None:
    text = render(diagnosis("no level", asked="SECURE"), "SECURE")

    assert "\nFor " not in text
    assert "absent" in text
    assert text.endswith("This host gives STRICT, the highest there is.")


def test_permissive_is_named_only_where_nothing_else_starts() -> None:
    assert "PERMISSIVE" not in render(diagnosis(Layer.CONTROL_GROUPS))
    assert "does without walls" not in render(diagnosis(Layer.NAMESPACES, fails=("PERMISSIVE",)))

    text = render(diagnosis(Layer.NAMESPACES))
    assert "a worker at PERMISSIVE, which does without walls" in text
    assert "--level" not in text
    assert text.endswith("This host gives no level yet: a worker cannot start.")
    assert "PERMISSIVE" not in render(diagnosis("every level"))


def test_the_command_line_has_the_options_that_this_host_makes_necessary() -> None:
    found = diagnosis()
    checks = (
        *found.checks,
        Check(name="a", needed_for="b", ok=True, found="c", layer="every level", options=("-x", "1")),
    )

    assert "enclave-runtime --level STRICT -x 1\n" in render(Diagnosis(checks=checks, starts=found.starts))
