"""The canaries sing: each kind of damage, and each survivor, is reported when it is really there."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enclave_protocol import SandboxError
from enclave_worker.api import RuntimeConfig, create_runtime_worker
from enclave_worker.attacks import leftovers
from enclave_worker.attacks.corpus import load, parse
from enclave_worker.attacks.host import Host
from enclave_worker.attacks.judge import Report, Verdict
from enclave_worker.attacks.runner import attack
from enclave_worker.runtime import RuntimeWorker
from enclave_worker.sandbox.levels import Layer
from tests.support import Footprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def host() -> Iterator[Host]:
    before = Footprint.now()
    with Host() as host:
        yield host
    now = Footprint.now()
    assert (now.descriptors, now.mounts) == (before.descriptors, before.mounts)
    assert not [path for path in host.facts["directories"] if Path(path).exists()]


def change_a_file(host: Host) -> None:
    Path(host.facts["secret_files"][0]).write_text("other")


def remove_a_file(host: Host) -> None:
    Path(host.facts["secret_files"][0]).unlink()


def add_a_file(host: Host) -> None:
    Path(host.facts["directories"][-1], "planted").touch()


def connect_to_tcp(host: Host) -> None:
    socket.create_connection(("127.0.0.1", host.facts["tcp_port"])).close()


def connect_to_the_abstract_socket(host: Host) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + host.facts["abstract"])


def send_to_udp(host: Host) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", ("127.0.0.1", host.facts["udp_port"]))


def remove_the_queue(host: Host) -> None:
    assert libc.msgctl(libc.msgget(host.facts["ipc_key"], 0), 0, None) == 0


def end_the_victim(host: Host) -> None:
    os.kill(host.facts["victim_pid"], signal.SIGKILL)
    os.waitid(os.P_PID, host.facts["victim_pid"], os.WEXITED | os.WNOWAIT)


def stop_the_victim(host: Host) -> None:
    os.kill(host.facts["victim_pid"], signal.SIGSTOP)
    os.waitid(os.P_PID, host.facts["victim_pid"], os.WSTOPPED | os.WNOWAIT)


def change_the_environment(_: Host) -> None:
    os.environ["ENCLAVE_CANARY"] = "other"


DAMAGES: list[tuple[Callable[[Host], None], str]] = [
    (change_a_file, "changed: /"),
    (remove_a_file, "changed: /"),
    (add_a_file, "appeared: /"),
    (connect_to_tcp, "reached: the host's tcp socket"),
    (connect_to_the_abstract_socket, "reached: the host's abstract socket"),
    (send_to_udp, "reached: the host's udp socket"),
    (remove_the_queue, "gone: System V message queue"),
    (end_the_victim, "a process of the host was ended"),
    (stop_the_victim, "a process of the host was stopped"),
    (change_the_environment, "changed: environment"),
]


def settle(host: Host) -> None:
    """Pytest changes an environment variable between a test's set-up and its body."""
    host.damage()
    assert host.damage() == []


@pytest.mark.parametrize(("harm", "said"), DAMAGES, ids=[harm.__name__ for harm, _ in DAMAGES])
def test_harm_to_the_host_is_reported(host: Host, harm: Callable[[Host], None], said: str) -> None:
    settle(host)

    harm(host)

    assert [damage[: len(said)] for damage in host.damage()] == [said]


def test_a_signal_to_the_victim_is_reported(host: Host) -> None:
    settle(host)
    os.kill(host.facts["victim_pid"], signal.SIGUSR1)
    heard: list[str] = []
    while not heard:  # it is delivered when the kernel schedules the victim
        heard = host.damage()

    assert heard == [f"a process of the host got signals: {signal.SIGUSR1.value} "]


def test_a_secret_is_known_wherever_it_appears_and_nothing_else_is(host: Host) -> None:
    secret = host.secrets["environment"]

    assert secret.decode() == os.environ["ENCLAVE_CANARY"]
    assert host.leaked(b"..." + secret + b"...") == ("environment",)
    assert host.leaked(secret[:-1]) == ()
    assert not any(secret in str(host.facts).encode() for secret in host.secrets.values())


async def test_a_guests_processes_are_told_from_warm_sandboxes_and_its_first_process() -> None:
    seen: list[dict[int, str]] = []
    look = {"look": lambda: seen.append(leftovers.guests("a_tag"))}
    async with create_runtime_worker(RuntimeConfig(listen=False, pool_size=2)) as worker:
        code = """
import ctypes, os
await call_tool("look")
child = os.fork()
if child == 0:
    while True: pass
await call_tool("look")
ctypes.CDLL(None).prctl(15, b"a_tag", 0, 0, 0)
await call_tool("look")
"""
        assert (await worker.execute(None, code, tools=look)).ok

    one = seen[1].keys() - seen[0].keys()
    two = seen[2].keys() - seen[0].keys()
    assert (len(one), len(two)) == (1, 2)
    assert sorted(seen[2][pid] for pid in two - one) == ["a_tag"]


HEADER = (
    "# attempts: x\n# layer: x\n# category: kernel\n# outcomes: OK GUEST_CRASHED DEADLINE_EXCEEDED\n"
    "# evidence: it\n# host: unchanged, others served\n"
)


async def reports_of(*codes: str) -> list[Report]:
    worker = create_runtime_worker(RuntimeConfig(pool_size=1))
    cases = [parse(f"case_{number}", HEADER + code) for number, code in enumerate(codes)]
    return [report async for report in attack(worker, cases)]


async def test_a_run_reports_each_case_and_what_is_left_afterwards() -> None:
    reports = await reports_of("held('it')", "breach('it', 'x')", "held('other')", "raise ValueError")

    assert [report.verdict for report in reports] == [
        Verdict.HELD,
        Verdict.BREACH,
        Verdict.NOT_ATTEMPTED,
        Verdict.NOT_ATTEMPTED,
        Verdict.HELD,
    ]
    assert [report.case for report in reports] == ["case_0", "case_1", "case_2", "case_3", "afterwards"]


async def test_a_secret_that_a_guest_prints_is_a_breach(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the guest has to be told for it to leak it.
    monkeypatch.setattr(Host, "facts", property(lambda host: {**host._facts, "told": str(host.secrets)}))

    reports = await reports_of("held('it')\nraise ValueError(HOST['told'])")

    assert reports[0].reason.startswith("the guest got hold of file in ")


async def test_what_an_attack_leaves_in_the_worker_is_reported(tmp_path: Path) -> None:
    async def leak() -> list[Report]:
        worker = create_runtime_worker(RuntimeConfig(pool_size=1))
        kept: list[int] = []
        reports = []
        cases = [parse("a_case", HEADER + "held('it')")]
        async for report in attack(worker, cases):
            if not kept:
                kept += [os.open(tmp_path, os.O_RDONLY)]
            reports.append(report)
        for descriptor in kept:
            os.close(descriptor)
        return reports

    last = (await asyncio.create_task(leak()))[-1]

    assert (last.case, last.verdict, last.reason) == ("afterwards", Verdict.BREACH, "left behind: 1 descriptors")


async def test_what_other_processes_of_the_program_make_meanwhile_is_not_the_runs() -> None:
    command = ["sh", "-c", "read go; sleep 600 & echo made; read end; kill $!"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:  # noqa: ASYNC220 - brief
        assert other.stdin is not None
        assert other.stdout is not None
        worker = create_runtime_worker(RuntimeConfig(pool_size=1))
        async for report in attack(worker, [parse("a_case", HEADER + "held('it')")]):
            if report.case == "a_case":
                os.write(other.stdin.fileno(), b"go\n")
                assert other.stdout.readline() == b"made\n"
        other.stdin.close()

    assert (report.case, report.verdict) == ("afterwards", Verdict.HELD)


async def test_a_sandbox_without_namespaces_is_not_attacked_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RuntimeWorker, "missing_layers", property(lambda _: frozenset({Layer.NAMESPACES})))

    with pytest.raises(SandboxError, match="nothing to test"):
        await reports_of("held('it')")


async def test_the_case_that_the_documentation_shows_holds() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    example = page.partition("```python\n# attempts:")[2].partition("```")[0]

    worker = create_runtime_worker(RuntimeConfig(pool_size=1))
    reports = [report async for report in attack(worker, [parse("shown", f"# attempts:{example}")])]

    assert [report.verdict for report in reports] == [Verdict.HELD, Verdict.HELD]


def test_every_case_has_a_name_of_its_category() -> None:
    prefixes = {case.name.partition("_")[0] for case in load()}

    assert prefixes == {
        *("files", "mounts", "kernel", "network", "processes", "resources"),
        *("identity", "information", "control", "python"),
    }
