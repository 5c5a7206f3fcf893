"""What a run of an attack means: one rule, one test."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from enclave_worker.attacks.corpus import parse
from enclave_worker.attacks.judge import Observed, Report, SessionSeen, Verdict, judge
from enclave_worker.attacks.report import summary

CASE = parse(
    "a_case",
    "# attempts: x\n# layer: y\n# category: kernel\n# outcomes: OK GUEST_CRASHED\n# evidence: first, second\n"
    "# host: unchanged\n",
)
BOTH = "HELD first: EPERM\nHELD second: ENOSYS\n"


def verdict(stdout: str = BOTH, *, case: Any = None, outcome: str = "OK", **more: Any) -> Report:
    seen = {key: more.pop(key) for key in ("stderr", "leaked", "message") if key in more}
    sessions = more.pop("sessions", (SessionSeen(outcome=outcome, stdout=stdout, **seen),))
    available = frozenset(more.pop("available", ()))
    return judge(case or CASE, Observed(sessions=sessions, **more), available)


def changed(**fields: Any) -> Any:
    return msgspec.structs.replace(CASE, **fields)


def test_all_evidence_an_allowed_outcome_and_no_damage_is_held() -> None:
    assert verdict().verdict is Verdict.HELD


def test_evidence_counts_on_either_stream_and_whatever_is_around_it() -> None:
    assert verdict("noise\nHELD first: EPERM\nnoise", stderr="HELD second").verdict is Verdict.HELD


def test_an_attempt_that_was_not_made_is_not_attempted() -> None:
    report = verdict("HELD first: EPERM\n", outcome="GUEST_CRASHED", message="boom")

    assert report.verdict is Verdict.NOT_ATTEMPTED
    assert report.reason == "nothing heard of: second; it ended with GUEST_CRASHED (boom)"


def test_evidence_in_the_middle_of_a_line_is_none() -> None:
    assert verdict("it HELD first: x\nHELD second: x\n").verdict is Verdict.NOT_ATTEMPTED


def test_one_attempt_that_worked_is_a_breach_whatever_else_held() -> None:
    report = verdict(BOTH + "BREACH first: it worked\n")

    assert (report.verdict, report.reason) == (Verdict.BREACH, "first: it worked")


def test_a_breach_in_an_early_session_counts() -> None:
    sessions = (SessionSeen(outcome="OK", stdout="BREACH first: x"), SessionSeen(outcome="OK", stdout=BOTH))

    assert verdict(sessions=sessions).verdict is Verdict.BREACH


def test_a_secret_in_the_stream_is_a_breach_even_if_the_guest_calls_it_held() -> None:
    assert verdict(leaked=("environment",)).reason == "the guest got hold of environment"


def test_damage_on_the_host_is_a_breach() -> None:
    assert verdict(damage=("changed: host_name",)).verdict is Verdict.BREACH


def test_no_final_in_time_is_a_breach() -> None:
    assert verdict(outcome="").reason == "no final in time"


@pytest.mark.parametrize("outcome", ["INTERNAL_ERROR", "WORKER_LOST"])
def test_an_outcome_that_is_our_fault_is_a_breach_even_without_evidence(outcome: str) -> None:
    assert verdict("", outcome=outcome).verdict is Verdict.BREACH


def test_an_outcome_that_is_not_allowed_is_a_breach_once_all_was_attempted() -> None:
    assert verdict(outcome="DEADLINE_EXCEEDED").verdict is Verdict.BREACH


def test_without_evidence_an_outcome_that_is_not_allowed_proves_nothing() -> None:
    assert verdict("", outcome="DEADLINE_EXCEEDED").verdict is Verdict.NOT_ATTEMPTED


def test_others_that_were_not_served_are_a_breach() -> None:
    assert verdict(unserved=("NO_CAPACITY: full",)).reason == "others were not served: NO_CAPACITY: full"


def test_a_case_that_promises_others_must_have_seen_some() -> None:
    case = changed(host=("unchanged", "others served"))

    assert verdict(case=case).verdict is Verdict.BREACH
    assert verdict(case=case, bystanders=1).verdict is Verdict.HELD


def test_words_that_must_differ_between_sessions_may_not_repeat() -> None:
    case = changed(distinct=("first",))
    same = SessionSeen(outcome="OK", stdout=BOTH)
    other = SessionSeen(outcome="OK", stdout=BOTH.replace("EPERM", "0.5"))

    assert verdict(case=case, sessions=(same, same)).reason == "first: the same in two sessions"
    assert verdict(case=case, sessions=(same, other)).verdict is Verdict.HELD


def test_a_case_that_needs_what_is_not_there_is_said_to_be_not_held_here() -> None:
    case = changed(needs=("control groups",))

    assert verdict(case=case, sessions=()).reason == "needs control groups"
    assert verdict(case=case, available=["control groups"]).verdict is Verdict.HELD


@pytest.mark.parametrize("bad", Verdict)
def test_a_breach_or_a_missing_attempt_fails_and_nothing_else_does(bad: Verdict) -> None:
    assert bad.fails == (bad in {Verdict.BREACH, Verdict.NOT_ATTEMPTED})


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([Verdict.HELD, Verdict.NOT_HELD_HERE], "1 held, 1 not held here. Everything that applies here holds."),
        ([Verdict.HELD, Verdict.BREACH], "1 held, 1 BREACH. The sandbox does not hold here"),
        ([Verdict.NOT_ATTEMPTED], "1 not attempted. What was not attempted proves nothing"),
    ],
)
def test_the_summary_says_the_worst(verdicts: list[Verdict], said: str) -> None:
    reports = [Report(case="c", category="kernel", layer="l", verdict=verdict, reason="r") for verdict in verdicts]

    assert summary(reports).startswith(said)
