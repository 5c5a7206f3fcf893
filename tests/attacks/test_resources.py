"""Using too much: memory, descriptors, output, time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .conftest import to_deadline

if TYPE_CHECKING:
    from .conftest import Attack


def test_a_memory_bomb_ends_with_its_own_code(attack: Attack) -> None:
    outcome = attack("hoard = []\nwhile True: hoard.append(bytearray(16 << 20))", memoryLimitBytes=256 << 20)

    assert outcome.code == "MEMORY_LIMIT_EXCEEDED"
    assert outcome.final["stats"]["peakMemoryBytes"] <= 256 << 20


def test_a_memory_bomb_of_small_pieces_ends_too(attack: Attack) -> None:
    outcome = attack("hoard = []\nwhile True: hoard.append([0] * 1000)", memoryLimitBytes=128 << 20)

    assert outcome.code in {"MEMORY_LIMIT_EXCEEDED", "GUEST_CRASHED"}


def test_one_huge_allocation_is_an_exception_the_guest_may_catch(attack: Attack) -> None:
    outcome = attack("try:\n    bytearray(1 << 40)\nexcept MemoryError:\n    return 'caught'")

    assert outcome.result == "caught"


def test_a_descriptor_bomb_stops_at_its_limit(attack: Attack) -> None:
    outcome = attack("""
held = []
while True:
    try:
        held.append(os.open('/dev/null', os.O_RDONLY))
    except OSError as error:
        return [len(held), errno.errorcode[error.errno]]
""")

    count, stop = outcome.result
    assert count < 256
    assert stop == "EMFILE"


def test_a_file_cannot_grow_past_its_limit(attack: Attack) -> None:
    outcome = attack("""
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fd = os.open('/tmp/f', os.O_CREAT | os.O_RDWR)
return attempt(lambda: os.pwrite(fd, b'x', 100 << 20))
""")

    assert outcome.result == "EFBIG"


def test_a_flood_on_stdout_is_cut_and_the_guest_lives(attack: Attack) -> None:
    outcome = attack("for _ in range(2000): os.write(1, b'x' * 65536)\nreturn 'done'")

    assert outcome.result == "done"
    assert len(outcome.stdout) == 262_144
    assert outcome.final["stats"]["stdoutBytes"] == 2000 * 65536


def test_an_endless_flood_on_both_streams_ends_at_the_deadline(attack: Attack) -> None:
    caps = (262_144, 262_144)
    flood = "while True:\n    os.write(1, b'x' * 65536)\n    os.write(2, b'y' * 65536)"
    outcome = to_deadline(attack, flood, lambda outcome: (len(outcome.stdout), len(outcome.stderr)) == caps)

    assert outcome.code == "DEADLINE_EXCEEDED"
    assert (len(outcome.stdout), len(outcome.stderr)) == caps


def test_stdin_is_empty(attack: Attack) -> None:
    assert attack("return [sys.stdin is None or sys.stdin.read(), os.read(0, 10).decode()]").result[1] == ""


def test_closing_or_replacing_the_output_hurts_only_the_guest(attack: Attack) -> None:
    assert attack("os.close(1); os.close(2); sys.stdout = None\nreturn 'fine'").result == "fine"


def test_changing_the_flags_of_the_output_pipes_does_not_reach_the_worker(attack: Attack) -> None:
    # The two ends of a pipe have flags of their own.
    outcome = attack("""
import fcntl
for fd in (1, 2):
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
os.write(1, b'still heard')
return 1
""")

    assert outcome.stdout == "still heard"


@pytest.mark.parametrize(
    "code",
    [
        "f = lambda: f()\nf()",
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(x): return [*map(f, [x])]\nf(1)",
        "x = []\nfor _ in range(10**6): x = [x]\nreturn x",
    ],
    ids=["Python recursion", "C recursion", "a deep result"],
)
def test_recursion_without_end_ends_the_guest_only(attack: Attack, code: str) -> None:
    outcome = attack(code)

    assert outcome.code in {"EXECUTION_ERROR", "GUEST_CRASHED", "RESULT_NOT_SERIALIZABLE", "MEMORY_LIMIT_EXCEEDED"}


def test_an_exception_with_a_giant_message_is_cut(attack: Attack) -> None:
    outcome = attack("raise ValueError('x' * 50_000_000)")

    assert outcome.code == "EXECUTION_ERROR"
    assert len(outcome.final["error"]["message"]) < 10_000
    assert len(outcome.final["error"]["stack"]) < 70_000


def test_a_hostile_exception_cannot_hang_or_forge_its_own_report(attack: Attack) -> None:
    outcome = attack("""
class Hostile(Exception):
    def __str__(self): raise SystemExit('from __str__')
    __repr__ = __str__
raise Hostile
""")

    assert (outcome.code, outcome.final["error"]["name"]) == ("EXECUTION_ERROR", "Hostile")


def test_leaving_without_a_result_is_a_crash(attack: Attack) -> None:
    outcome = attack("os._exit(0)")

    assert outcome.code == "GUEST_CRASHED"
    assert "status 0" in outcome.final["error"]["message"]
