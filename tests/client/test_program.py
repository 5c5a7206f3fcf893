"""A child process of the fleet: how it starts, speaks and ends."""

from __future__ import annotations

import asyncio
import os
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from enclave_client.program import Program, ProgramDiedError, describe_exit

if TYPE_CHECKING:
    from pathlib import Path

MakeProgram = Callable[[str], tuple[Program, list[str]]]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeProgram:
    """Return a function that makes a Program from source."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lines: list[str] = []

    def make(source: str) -> tuple[Program, list[str]]:
        body = textwrap.indent(textwrap.dedent(source), "    ")
        (tmp_path / "child_under_test.py").write_text(f"def main():\n{body}\n")
        return Program("worker-1", "child_under_test", ["--flag"], lines.append), lines

    return make


LISTENS = 'print("enclave-runtime listening on ws://127.0.0.1:9/ws at level STANDARD", flush=True)\n'


async def test_it_says_where_it_listens_and_what_follows_is_logged(program: MakeProgram) -> None:
    child, lines = program(LISTENS + 'import sys; print("more", sys.argv[1:], file=sys.stderr)')
    await child.start()

    assert await child.wait_listening(30) == child.url == "ws://127.0.0.1:9/ws"
    assert child.level == "STANDARD"
    assert await child.wait_exit() == "exit code 0"
    assert lines == ["more ['--flag']"]


async def test_one_that_dies_before_listening_is_reported_with_its_words(program: MakeProgram) -> None:
    child, _ = program('raise SystemExit("no user namespaces here")')
    await child.start()

    with pytest.raises(ProgramDiedError, match=r"worker-1 did not start \(exit code 1\)"):
        await child.wait_listening(30)
    assert list(child.kept_lines) == ["no user namespaces here"]


async def test_one_that_never_listens_is_not_waited_for_longer_than_asked(program: MakeProgram) -> None:
    child, _ = program("import time; time.sleep(600)")
    await child.start()

    with pytest.raises(ProgramDiedError, match="did not listen within"):
        await child.wait_listening(0)
    await child.stop(0)


async def test_one_that_ignores_sigterm_is_killed_after_its_grace(program: MakeProgram) -> None:
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    child, _ = program(ignore + LISTENS + "time.sleep(600)")
    await child.start()
    await child.wait_listening(30)

    await child.stop(0.01)

    assert child.ended
    assert await child.wait_exit() == "killed by SIGKILL"


async def test_a_grandchild_that_holds_the_pipes_does_not_hold_us(
    program: MakeProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclave_client.program.DRAIN_S", 0.01)
    child, _ = program(LISTENS + "import os, time\nif os.fork() == 0: os.setsid(); time.sleep(30)")
    await child.start()
    await child.wait_listening(30)

    assert await child.wait_exit() == "exit code 0"


async def test_a_line_without_end_is_cut(program: MakeProgram) -> None:
    child, lines = program(LISTENS + 'print("x" * 1_000_000)')
    await child.start()
    await child.wait_exit()

    assert sum(map(len, lines)) == 1_000_000
    assert max(map(len, lines)) < 100_000


async def test_the_child_has_no_descriptor_of_ours(program: MakeProgram) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    child, lines = program(LISTENS + f"import os\ntry: os.fstat({writer})\nexcept OSError: print('closed')")
    await child.start()
    await child.wait_exit()
    os.close(reader)
    os.close(writer)

    assert lines == ["closed"]


async def test_arguments_may_follow_while_the_module_loads(program: MakeProgram) -> None:
    child, lines = program("import os, sys; print(sys.argv[1:], repr(sys.stdin.read()))")
    child.arguments = None
    await child.start()
    await child.give_arguments(["--worker", "ws://x y"])
    await child.wait_exit()

    assert lines == ["['--worker', 'ws://x y'] ''"]


BUSY = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
print("up", flush=True)
signal.sigwait({signal.SIGINT})
sys.exit(7 if signal.SIGTERM in signal.sigpending() else 8)
"""


@pytest.mark.parametrize("by", ["patience", "hurry"])
async def test_one_that_has_not_taken_the_first_signal_yet_is_told_twice_too(program: MakeProgram, by: str) -> None:
    child, lines = program(BUSY)
    hurry = asyncio.Event()
    await child.start()
    while "up" not in lines:  # noqa: ASYNC110 - its lines have no event
        await asyncio.sleep(0.01)
    if by == "hurry":
        hurry.set()
    await child.stop(60, patience_s=0.01 if by == "patience" else 3600, hurry=hurry)

    assert await child.wait_exit() == "exit code 7"


async def test_one_that_is_stopped_before_it_has_its_arguments_goes_quietly(program: MakeProgram) -> None:
    child, lines = program("print('ran')")
    child.arguments = None
    await child.start()
    await child.stop(30)

    assert lines == []


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exit code 0"), (3, "exit code 3"), (-9, "killed by SIGKILL"), (-99, "killed by signal 99")],
)
def test_an_exit_is_described_in_words(status: int, words: str) -> None:
    assert describe_exit(status) == words
