"""Our own corpus holds on the real sandbox, whoever started it: `enclave doctor --attack`, case by case."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from enclave_worker.attacks.corpus import CASES, CATEGORIES, Case, load, parse, prelude
from enclave_worker.sandbox.syscalls import X86_64

from .corpora import DOCTOR, LONGEST_S, WHO

if TYPE_CHECKING:
    from .conftest import Corpora

CORPUS = {case.name: case for case in load()}
NOT_FOR_USERS = {
    "identity_own_user": "all sandboxes of an ordinary user's worker run as that user",
    "resources_descriptors_in_flight": "the kernel counts descriptors in flight by host user",
}
"""What an ordinary user's worker does not promise, and why."""


class Ran(NamedTuple):
    """A run of the whole corpus."""

    verdicts: dict[str, dict[str, str]]
    exit_code: int


@pytest.fixture(scope="module", params=WHO)
def ran(request: pytest.FixtureRequest, corpora: Corpora) -> Ran:
    done = corpora.own[request.param].result()
    assert done.stdout, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    return Ran({report["case"]: report for report in reports}, done.returncode)


@pytest.mark.parametrize("name", [*CORPUS, "afterwards"])
def test_every_attack_is_made_and_comes_to_nothing(ran: Ran, name: str) -> None:
    report = ran.verdicts[name]

    if report["verdict"] == "not held here":
        assert CORPUS[name].needs
    else:
        assert report["verdict"] == "held", report["reason"]


def test_the_exit_code_says_that_all_held(ran: Ran) -> None:
    assert ran.exit_code == 0


def test_only_what_needs_cgroups_or_own_users_is_left_out(ran: Ran) -> None:
    left_out = {name for name, report in ran.verdicts.items() if report["verdict"] == "not held here"}

    without_cgroups = {name for name, case in CORPUS.items() if {"control groups"} & set(case.needs)}
    without_x86 = {name for name, case in CORPUS.items() if "x86_64" in case.needs}
    assert left_out <= without_cgroups | without_x86 | set(NOT_FOR_USERS)


def test_the_text_says_who_attacks_and_what_came_of_it() -> None:
    done = subprocess.run(
        [*DOCTOR, "--only", "kernel_rings"], capture_output=True, text=True, timeout=LONGEST_S, check=False
    )

    first, *_, last = done.stdout.splitlines()
    assert done.returncode == 0
    assert first.startswith("1 attacks on the sandboxes of a worker started as ")
    assert last == "2 held. Everything that applies here holds."


@pytest.mark.parametrize("options", [["--attack", "--only", "nonesuch"], ["--json-lines"], ["--only", "kernel_rings"]])
def test_options_that_mean_nothing_are_refused(options: list[str]) -> None:
    command = [*DOCTOR[:-1], *options]

    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 2


def test_every_category_has_several_cases() -> None:
    counted = [case.category for case in CORPUS.values()]

    assert {category: counted.count(category) >= 3 for category in CATEGORIES} == dict.fromkeys(CATEGORIES, True)


@pytest.mark.parametrize("case", CORPUS.values(), ids=CORPUS)
def test_the_system_calls_a_case_makes_by_name_exist(case: Case) -> None:
    # The prelude takes a call that the machine does not have for refused: a slip of the pen must not pass for it.
    called = {name for code in case.sessions for name in re.findall(r"\bcall\(\"(\w+)\"", code)}

    assert called <= set(X86_64)


@pytest.mark.parametrize("case", CORPUS.values(), ids=CORPUS)
def test_what_a_case_promises_as_evidence_is_in_its_code(case: Case) -> None:
    code = "".join(case.sessions).partition("# host:")[2]

    assert [name for name in case.evidence if f'"{name}"' not in code and f"{name} = " not in code] == []


HEADER = (CASES / "kernel_rings.py").read_text()


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("# layer: system call filter", "", "does not say layer"),
        ("# category: kernel", "# category: colonel", "'colonel' is none of"),
        ("# outcomes: OK", "# outcomes: FINE", "'FINE' is none of"),
        ("# host: unchanged", "# host: unharmed", "'unharmed' is none of"),
        ("# host: unchanged", "# host: unchanged\n# needs: luck", "'luck' is none of"),
        ("# host: unchanged", "# host: unchanged\n# evidense: x", "says evidense, which nothing reads"),
    ],
)
def test_a_wrong_header_is_refused(was: str, now: str, said: str) -> None:
    lines = [line for line in HEADER.replace(was, now).splitlines() if line]

    with pytest.raises(ValueError, match=said):
        parse("x", "\n".join(lines))


def test_the_prelude_and_every_session_compile_as_the_body_of_a_function() -> None:
    for case in CORPUS.values():
        for code in case.sessions:
            body = "".join(f" {line}\n" for line in f"{prelude()}\n{code}".splitlines())
            compile(f"async def main():\n{body} pass", case.name, "exec")
