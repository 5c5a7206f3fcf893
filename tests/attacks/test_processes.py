"""Other processes: seeing them, signalling them, outliving the session, and making too many."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support import (
    NAME_PROCESS,
    Footprint,
    new_name,
    own_children_of,
    wait_none_named,
)

from .conftest import to_deadline

if TYPE_CHECKING:
    from .conftest import Attack, Target


def test_only_the_sandboxes_own_processes_are_seen(attack: Attack) -> None:
    # A pid namespace of its own, and a /proc that belongs to it.
    outcome = attack("return [os.getpid(), os.getppid(), [n for n in os.listdir('/proc') if n.isdigit()]]")

    assert outcome.result == [1, 0, ["1"]]


@pytest.mark.parametrize("number", [0, 9, 15, 19])
def test_signalling_a_process_of_the_host_finds_none(attack: Attack, number: int) -> None:
    assert attack(f"return attempt(lambda: os.kill({os.getpid()}, {number}))").result == "ESRCH"


def test_signalling_everybody_reaches_only_the_sandbox(attack: Attack, target: Target) -> None:
    launchers = set(own_children_of(target.pid))
    # From a child, because kill(-1) spares pid 1 and the caller.
    outcome = attack("""
import signal, time
victim = os.fork()
if victim == 0:
    time.sleep(100)
if os.fork() == 0:
    os.kill(-1, signal.SIGKILL)
    os._exit(0)
return os.waitpid(victim, 0)[1]
""")

    assert outcome.result == 9
    assert launchers
    assert launchers <= set(own_children_of(target.pid)), "the launchers live"


@pytest.mark.parametrize("name", ["SIGSTOP", "SIGKILL"])
def test_stopping_or_killing_itself_is_refused_because_pid_1_would_not_hear_it(attack: Attack, name: str) -> None:
    outcome = attack(f"""
import signal
def by_tgkill():
    signal.raise_signal(signal.{name})
return [attempt(lambda: os.kill(1, signal.{name})), attempt(by_tgkill)]
""")

    assert outcome.result == ["EPERM", "EPERM"]


def test_stopping_a_child_is_the_guests_own_business(attack: Attack) -> None:
    outcome = attack("""
import signal, time
child = os.fork()
if child == 0:
    time.sleep(100)
os.kill(child, signal.SIGSTOP)
return os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
""")

    assert outcome.result is True


def test_tracing_ones_own_child_is_refused(attack: Attack) -> None:
    outcome = attack("""
child = os.fork()
if child == 0:
    os._exit(0 if _libc.ptrace(0, 0, 0, 0) < 0 else 1)
return os.waitpid(child, 0)[1]
""")

    assert outcome.result == 0


def test_a_daemon_that_left_session_and_group_dies_with_its_session(attack: Attack) -> None:
    name = new_name()
    outcome = attack(
        NAME_PROCESS.format(name=name)
        + """
import signal, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        for number in range(1, 32):
            try: signal.signal(number, signal.SIG_IGN)
            except OSError: pass
        if os.fork() == 0:
            for fd in range(10):
                try: os.close(fd)
                except OSError: pass
            time.sleep(1000)
        os._exit(0)
return 'left'
"""
    )

    assert outcome.result == "left"
    wait_none_named(name)


def test_a_fork_bomb_stops_at_the_process_limit_and_is_gone_at_the_deadline(attack: Attack) -> None:
    name = new_name()
    code = (
        NAME_PROCESS.format(name=name)
        + """
import time
made = 0
for _ in range(500):
    try:
        if os.fork() == 0:
            time.sleep(1000)
    except BlockingIOError:
        break
    made += 1
print(made)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
    )
    outcome = to_deadline(attack, code, lambda outcome: "\n" in outcome.stdout)

    assert int(outcome.stdout.splitlines()[0]) < 64
    assert outcome.code == "DEADLINE_EXCEEDED"
    wait_none_named(name)  # its final waits for their end, but not for ever


def test_a_thread_bomb_stops_at_the_same_limit(attack: Attack) -> None:
    outcome = attack("""
import threading, time
made = 0
try:
    for made in range(500):
        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
except RuntimeError:
    return made
""")

    assert outcome.result < 64


def test_processes_of_one_sandbox_do_not_use_up_anothers_limit(attack: Attack) -> None:
    # NPROC is counted by user and user namespace, and both are the sandbox's own.
    for _ in range(2):
        assert (
            attack("""
pids = []
for _ in range(40):
    pid = os.fork()
    if pid == 0:
        import time
        time.sleep(100)
    pids.append(pid)
return len(pids)
""").result
            == 40
        )


def test_attacks_leave_no_process_descriptor_or_mount_behind(attack: Attack, target: Target) -> None:
    before = target.at_rest(), Footprint.now().mounts
    for _ in range(10):
        attack("if os.fork() == 0:\n    os.setsid()\n    while True: pass\nos._exit(1)")
        attack("while True: pass", deadlineMs=30)

    assert (target.at_rest(), Footprint.now().mounts) == before


def test_a_name_that_looks_like_a_statistic_is_not_one(attack: Attack, target: Target) -> None:
    for name in (b"VmHWM: x", b"\nVmHWM: 9999999", b") R 1 1 1"):
        outcome = attack(f"import ctypes\nctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0)\nreturn 1")
        assert outcome.final["ok"]
        assert 100_000 < outcome.final["stats"]["peakMemoryBytes"] < 500_000_000

    assert target.metric("enclave_executions_active") == 0
