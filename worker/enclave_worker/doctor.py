"""What this machine must offer for a worker to start, which security level it gives, and what gives the next one.

Theory of operation. Every need (`doctor_needs`) is really tried, as the current user, in a process of its own: with the
kernel calls that zygotes make (`doctor_probes`), or with the worker's own modules (`doctor_layers`). What that means is
decided by pure functions (`doctor_verdict`). Then a worker is started at the level that all this promises, and at the
one that was asked for: nothing is called well that is not.

With control groups of version 2 a worker needs a group without other processes. Ours is the one that it would get, so
we step aside into a group of our own, and what we start begins where we were.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .cgroups import ControlGroupsMissing
from .doctor_layers import layout
from .doctor_needs import NEEDS, SYSCTLS, Answer, Host
from .doctor_verdict import Check, Diagnosis, Start, judge, options_of, starts_of
from .sandbox.levels import Layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .doctor_needs import Need
    from .sandbox.levels import Level

OLDEST_LINUX = (5, 12)
MACHINES = ("x86_64", "aarch64")
PROBE_TIMEOUT_S = 15.0
WORKER_TIMEOUT_S = 30.0


def diagnose(asked: str = "") -> Diagnosis:
    """Try everything a worker needs, as the current user; then start workers.

    Args:
        asked: a level that is to be tried too, besides the strictest that is possible.
    """
    host = look_at_host()
    with stepped_aside(_shared_group()) as enter:
        answers = [(need, probe(need, enter)) for need in NEEDS]
        checks = (_linux(), _machine(), *(judge(need, host, answer) for need, answer in answers))
        options = options_of(checks)
        starts = starts_of(checks, asked, lambda level: _start_worker(level, options, enter))
        return Diagnosis(checks=checks, starts=tuple(starts))


def probe(need: Need, enter: Callable[[], None] | None = None) -> Answer:
    """Run one probe in a process of its own, which calls `enter` first."""
    script = Path(__file__).with_name("doctor_probes.py")
    how = ("-P", "-m", "enclave_worker.doctor_layers") if need.ours else ("-I", "-S", str(script))
    command = [sys.executable, *how, need.probe]
    try:
        done = subprocess.run(  # noqa: S603 - ours
            command,
            capture_output=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
            preexec_fn=enter,
        )
        return msgspec.json.decode(done.stdout, type=Answer)
    except subprocess.TimeoutExpired:
        return Answer(ok=False, found=f"no answer within {PROBE_TIMEOUT_S:g} s")
    except OSError as error:
        return Answer(ok=False, found=f"cannot start {sys.executable}: {error.strerror}")
    except msgspec.DecodeError:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        return Answer(ok=False, found=words[-1] if words else f"the probe ended with {done.returncode}")


def _shared_group() -> str:
    """Return the version 2 control group that we would share with a worker; empty if that is no matter."""
    try:
        ours = layout()
    except ControlGroupsMissing:
        return ""
    # At the root of a container, a worker moves everybody.
    return ours.directories["memory"] if ours.version == 2 and not ours.at_root else ""


@contextlib.contextmanager
def stepped_aside(group: str) -> Iterator[Callable[[], None] | None]:
    """Leave a control group (empty: none) for one below it; yield what takes a new process there.

    Where that is forbidden we stay, and the worker will say what it lacks.
    """
    aside = f"{group}/doctor-{os.getpid()}"
    if not group or not _step_into(aside):
        yield None
        return
    try:
        yield functools.partial(_enter, group)
    finally:
        with contextlib.suppress(OSError):  # another worker hands controllers down from there by now
            _enter(group)
            os.rmdir(aside)  # noqa: PTH106 - as above


def _step_into(aside: str) -> bool:
    try:
        os.mkdir(aside)  # noqa: PTH102 - a string all along
    except OSError:
        return False
    try:
        _enter(aside)
    except OSError:
        os.rmdir(aside)  # noqa: PTH106 - as above
        return False
    return True


def _enter(group: str) -> None:
    Path(group, "cgroup.procs").write_text("0", encoding="ascii")


def look_at_host() -> Host:
    """Read what the choice of a fix depends on."""
    sysctls = {}
    for name in SYSCTLS:
        with contextlib.suppress(OSError):
            sysctls[name] = Path("/proc/sys", name).read_text(encoding="ascii").strip()
    return Host(
        root=os.geteuid() == 0,
        container=_container(),
        sysctls=sysctls,
        interpreter=os.path.realpath(sys.executable),
    )


def _container() -> str:
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    if Path("/.dockerenv").exists():
        return "docker"
    return "a container" if Path("/run/.containerenv").exists() else ""


def _linux() -> Check:
    release = platform.release()
    digits = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit()]
    ok = sys.platform == "linux" and tuple(digits) >= OLDEST_LINUX
    oldest = ".".join(map(str, OLDEST_LINUX))
    return Check(
        name=f"Linux {oldest} or newer",
        needed_for="mount attributes, /proc of processes only",
        ok=ok,
        found=f"{platform.system()} {release}",
        layer=Layer.NAMESPACES,
        fix="" if ok else f"run a kernel of {oldest} or newer",
    )


def _machine() -> Check:
    machine = platform.machine()
    ok = machine in MACHINES and sys.maxsize > 2**32
    return Check(
        name="x86-64 or aarch64",
        needed_for="the system call filter",
        ok=ok,
        found=f"{machine}, {'64' if sys.maxsize > 2**32 else '32'}-bit Python",
        layer=Layer.NAMESPACES,
        fix="" if ok else "run a 64-bit Python on one of these machines",
    )


def _start_worker(level: Level, options: Sequence[str], enter: Callable[[], None] | None) -> Start:
    """Start a worker on a free port and stop it; say whether it listened, or its last words if it did not."""
    command = [sys.executable, "-P", "-m", "enclave_worker.cli", "--host", "127.0.0.1", "--port", "0"]
    command += ["--level", level.name, "--pool-size", "1", *options]
    started = time.monotonic()
    with tempfile.TemporaryFile() as words:
        worker = subprocess.Popen(  # noqa: S603 - ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            preexec_fn=enter,  # noqa: PLW1509 - we have one thread
        )
        try:
            listens = worker.stdout is not None and _listens(worker.stdout.fileno(), level)
        finally:
            worker.terminate()
            _wait_or_kill(worker)
        if listens:
            return Start(level=level, ok=True, said=f"starts in {time.monotonic() - started:.1f} s")
        words.seek(0)
        said = words.read().decode(errors="replace").strip().splitlines()
    return Start(level=level, ok=False, said=said[-1] if said else f"exit code {worker.returncode} without a word")


def _listens(fd: int, level: Level) -> bool:
    said = b""
    # To the end of the line: it may come in pieces (PYTHONUNBUFFERED).
    while not said.endswith(b"\n") and select.select([fd], [], [], WORKER_TIMEOUT_S)[0] and (more := os.read(fd, 4096)):
        said += more
    return said.startswith(b"enclave-runtime listening on ") and said.endswith(f" at level {level.name}\n".encode())


def _wait_or_kill(worker: subprocess.Popen[bytes]) -> None:
    try:
        worker.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.communicate()
