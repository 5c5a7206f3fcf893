"""PERMISSIVE on a host without namespaces: it has to be asked for, warns, and still ends and cleans up everything."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enclave_worker.zygote.kernel import landlock_abi
from tests.support import (
    NAME_PROCESS,
    PATIENCE_S,
    Run,
    children_of,
    client_of,
    new_name,
    ordinary_user,
    processes_named,
    running,
    watched,
    worker_process,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent.parent
NO_NAMESPACES = [sys.executable, str(HERE / "without_namespaces.py")]
WORKER = [sys.executable, "-m", "enclave_worker.cli", "--port", "0"]
UNDYING = """
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
def orphan():
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        print('up', flush=True)
        while True: time.sleep(60)
orphan()
if os.fork() == 0:
    orphan()
    while True: time.sleep(60)
if os.fork() == 0:
    while True:  # never the same process for long: each lives only to make the next
        try:
            if os.fork(): os._exit(0)
        except OSError:
            time.sleep(0.001)
"""
needs_landlock = pytest.mark.skipif(landlock_abi() < 6, reason="this kernel's Landlock knows no scopes")


@contextlib.contextmanager
def bare_worker(
    *options: str, scratch: Path, as_user: int | bool = True
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A PERMISSIVE worker on a host without namespaces, by default an ordinary user's.

    Its sandboxes' directories are made in `scratch`.
    """
    scratch.chmod(0o1777)
    with worker_process(
        "--level", "PERMISSIVE", *options, as_user=as_user, before=NO_NAMESPACES, env={"TMPDIR": str(scratch)}
    ) as started:
        yield started


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """Where the module's worker has its sandboxes' directories."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:  # another user can reach it
        yield Path(path)


@pytest.fixture
def own_scratch() -> Iterator[Path]:
    """The same for a worker of the test's own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def url(scratch: Path) -> Iterator[str]:
    """A worker without namespaces."""
    with bare_worker(scratch=scratch) as (_, url):
        yield url
    assert list(scratch.iterdir()) == [], "a worker that ends leaves nothing behind"


@pytest.mark.parametrize("level", ["STRICT", "SECURE", "STANDARD", "BEST"])
def test_no_other_level_starts_without_namespaces(level: str) -> None:
    command = [*NO_NAMESPACES, *ordinary_user([*WORKER, "--level", level])]

    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    assert done.returncode == 1
    assert done.stdout == ""
    missing = {"STRICT": "no own host user", "SECURE": "no control groups"}  # the first of several that it names
    assert missing.get(level, "'user namespace' failed") in done.stderr


def test_every_start_warns_and_says_what_is_missing() -> None:
    command = [*NO_NAMESPACES, *ordinary_user([*WORKER, "--level", "PERMISSIVE"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline(), "it starts"
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE_S)

    assert "IS NOT ISOLATED from this host's files, network and processes" in said
    assert "without namespaces: user namespace: No space left on device" in said


async def test_it_warns_on_a_host_with_namespaces_too_and_uses_them(caplog: pytest.LogCaptureFixture) -> None:
    async with running(level="PERMISSIVE", pool_size=1) as worker, client_of(worker.url) as client:
        run = await client.run("import os\nreturn [os.getpid(), os.getcwd()]")

        assert run.final["result"] == [1, "/workspace"]
        assert client.hello["level"] == "PERMISSIVE"
        assert "namespaces" not in client.hello.get("missingLayers", [])
    assert "level PERMISSIVE is for development" in caplog.text


async def test_it_runs_code_with_output_a_tool_imports_and_programs(url: str) -> None:
    async with client_of(url) as client:
        session = await client.start(
            "import subprocess, sqlite3, tempfile\n"
            "print('hi', end='')\n"
            "three = await call_tool('add', {'a': 1})\n"
            "said = subprocess.run(['/bin/sh', '-c', 'echo from a program'], capture_output=True, text=True).stdout\n"
            "with tempfile.TemporaryFile() as file:\n"
            "    file.write(b'x')\n"
            "return [three, said, sqlite3.sqlite_version_info[0]]"
        )
        call = await client.until(session, "tool_call")
        await client.answer(session, call["callId"], 3)
        run = await client.finish(session)

        assert (run.code, run.text("stdout")) == ("OK", "hi"), run.final
        assert run.final["result"] == [3, "from a program\n", 3]
        assert client.hello["level"] == "PERMISSIVE"
        assert "namespaces" in client.hello["missingLayers"]


async def test_locks_that_need_no_privilege_are_on(url: str) -> None:
    async with client_of(url) as client:
        run = await client.run(
            "return dict(l.split(':\\t', 1) for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)"
        )

    status = run.final["result"]
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize(
    ("attempt", "refusal"),
    [
        ("socket.socket(socket.AF_INET)", "EAFNOSUPPORT"),
        ("socket.socket(socket.AF_INET6)", "EAFNOSUPPORT"),
        ("socket.socket(socket.AF_UNIX)", "EAFNOSUPPORT"),
        ("socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)", "EPROTONOSUPPORT"),
        ("libc('unshare', 0x10000000)", "EPERM"),
        ("libc('prctl', 36, 0, 0, 0, 0)", "EPERM"),
        ("libc('mq_open', b'/own', os.O_CREAT | os.O_RDWR, 0o600, None)", "EPERM"),
        ("libc('shmget', 1, 4096, 0o1600)", "EPERM"),
        pytest.param("os.kill(os.getppid(), 9)", "EPERM", marks=needs_landlock),
        pytest.param("open('/etc/passwd')", "EACCES", marks=needs_landlock),
        pytest.param("os.listdir('/home')", "EACCES", marks=needs_landlock),
        pytest.param("open('/tmp/left-behind', 'w')", "EACCES", marks=needs_landlock),
        pytest.param("open('/dev/shm/left-behind', 'w')", "EACCES", marks=needs_landlock),
        pytest.param("open(f'/proc/{os.getppid()}/cmdline')", "EACCES", marks=needs_landlock),
        pytest.param(f"open({__file__!r})", "EACCES", marks=needs_landlock),
    ],
)
async def test_what_leads_to_the_host_is_refused(url: str, attempt: str, refusal: str) -> None:
    code = f"""
import ctypes, errno, os, socket
def libc(name, *arguments):
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
try:
    {attempt}
except OSError as error:
    return errno.errorcode[error.errno]
return 'WORKED'
"""
    async with client_of(url) as client:
        assert (await client.run(code)).final["result"] == refusal


@needs_landlock
async def test_two_sandboxes_see_nothing_of_each_others_files(url: str) -> None:
    async with client_of(url) as client, client_of(url) as other:
        held = await client.start(
            "import os\nopen('secret', 'w').write('x')\nprint(os.getcwd(), flush=True)\nawait call_tool('wait')"
        )
        await client.until(held, "tool_call")
        place = next(e["payload"]["chunk"] for e in client.events(held) if e["type"] == "stdout").strip()
        run = await other.run(f"""
import os
seen = []
for attempt in (lambda: open({place!r} + '/secret'), lambda: os.listdir({place!r}),
                lambda: os.listdir(os.path.dirname({place!r})), lambda: os.unlink({place!r} + '/secret')):
    try:
        attempt()
        seen.append('WORKED')
    except OSError as error:
        seen.append(type(error).__name__)
return seen
""")
        await client.send({"type": "cancel", "sessionId": held})
        await client.finish(held)

    assert run.final["result"] == ["PermissionError"] * 4


@pytest.mark.parametrize("ending", ["deadline", "cancel", "crash", "return"])
async def test_every_process_ends_with_the_session_and_its_directory_goes(url: str, scratch: Path, ending: str) -> None:
    name = new_name()
    last = {"crash": "os.kill(os.getpid(), 9)", "return": "return 1"}.get(ending, "while True: time.sleep(60)")
    code = NAME_PROCESS.format(name=name) + UNDYING + "open('mine', 'x').close()\n"
    code += "print(os.getcwd(), flush=True)\nsys.stdin.read()\n" + last
    async with client_of(url) as client:
        if ending == "deadline":
            run = await client.run_to_deadline(code, str(scratch))
        else:
            session = await client.start(code, deadlineMs=60_000)
            if ending == "cancel":
                await client.until_written(session, str(scratch))
                await client.until_written(session, "up")
                await client.send({"type": "cancel", "sessionId": session})
            run = await client.finish(session)

    expected = {"deadline": "DEADLINE_EXCEEDED", "cancel": "SESSION_CANCELLED", "crash": "GUEST_CRASHED"}
    assert run.code == expected.get(ending, "OK")
    _wait_none_left(name)  # a final of ours waits for their end, but not for ever, and the guest's own does not
    place = next(line for line in run.text("stdout").split() if line.startswith(str(scratch)))
    _wait_gone(Path(place) / "mine")


async def test_files_that_resist_being_removed_are_removed(url: str, scratch: Path) -> None:
    code = """
import os
start = os.getcwd()
os.symlink('/etc', 'link')
for _ in range(3000):  # longer than any path may be
    os.mkdir('d')
    os.chdir('d')
open('f', 'w')
os.chdir(start)
os.mkdir('locked')
os.mkdir('locked/in')
os.chmod('locked/in', 0)
os.chmod('locked', 0)
os.chmod('.', 0)
return start
"""
    async with client_of(url) as client:
        place = (await client.run(code)).final["result"]
        assert place.startswith(str(scratch))
    _wait_gone(Path(place) / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes users of others")
async def test_a_worker_of_roots_gives_each_sandbox_a_user_of_its_own(own_scratch: Path) -> None:
    code = "import os\nreturn [os.getuid(), os.stat('.').st_uid, os.getgroups(), open('/proc/self/status').read()]"
    with bare_worker(scratch=own_scratch, as_user=0) as (_, url):
        async with client_of(url) as client:
            first = (await client.run(code)).final["result"]
            second = (await client.run(code)).final["result"]

    assert first[0] == first[1] >= 200_000
    assert first[0] != second[0]
    assert (first[2], "CapBnd:\t0000000000000000" in first[3]) == ([], True)
    assert _entries(own_scratch) == []


@pytest.fixture
def profiles() -> Iterator[Path]:
    """A file of profiles, of which one brings a package."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:  # another user can reach it
        Path(place).chmod(0o755)
        Path(place, "own_package.py").write_text("VALUE = 7\n")
        file = Path(place, "profiles.toml")
        file.write_text(f"[profiles.python]\npackages_dir = '{place}'\npreload = ['own_package']\n")
        yield file


async def test_packages_of_a_profile_are_there(own_scratch: Path, profiles: Path) -> None:
    with bare_worker("--profiles", str(profiles), scratch=own_scratch) as (_, url):
        async with client_of(url) as client:
            run = await client.run("import own_package\nreturn own_package.VALUE")

    assert run.final["result"] == 7


async def test_memory_of_the_whole_sandbox_is_watched(own_scratch: Path) -> None:
    code = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        x = b'x' * (60 << 20)
        time.sleep(60)
time.sleep(60)
"""
    with bare_worker("--memory-limit-bytes", str(128 << 20), scratch=own_scratch) as (_, url):
        async with client_of(url) as client:
            run = await client.run(code)

    assert run.code == "MEMORY_LIMIT_EXCEEDED"


async def test_nothing_outlives_a_killed_worker(own_scratch: Path) -> None:
    name = new_name()
    code = NAME_PROCESS.format(name=name) + UNDYING + "while True: time.sleep(60)"
    with bare_worker(scratch=own_scratch) as (process, url):
        async with client_of(url) as client:
            session = await client.start(code)
            await client.until_written(session, "up")
            family = children_of(process.pid)
            with watched(family) as wait_gone:
                process.kill()
                wait_gone()
    _wait_none_left(name)
    assert _entries(own_scratch) == []


@pytest.mark.parametrize("victim", ["launcher", "keeper", "zygote"])
async def test_nothing_outlives_any_of_the_processes_above_it(own_scratch: Path, victim: str) -> None:
    name = new_name()
    code = NAME_PROCESS.format(name=name) + "import os\nprint('I am', os.getpid(), '.', flush=True)\n" + UNDYING
    with bare_worker(scratch=own_scratch) as (_, url):
        async with client_of(url) as client:
            session = await client.start(code + "while True: time.sleep(60)")
            await client.until_written(session, "up")
            said = Run({}, client.events(session)).text("stdout")
            # The first of the sandbox is the zygote's child, and without namespaces knows its number.
            parents = _ancestors(int(said.partition("I am ")[2].partition(" ")[0]))
            os.kill(parents[["zygote", "keeper", "launcher"].index(victim)], signal.SIGKILL)
            run = await client.finish(session)
            assert run.code != "OK"
            assert (await client.run("return 1")).final["result"] == 1, "another zygote has taken its place"
    _wait_none_left(name)
    for entry in _entries(own_scratch):  # a keeper without a launcher, which nobody waits for, removes it last
        _wait_gone(entry)
    assert _entries(own_scratch) == []


def _entries(path: Path) -> list[Path]:
    return list(path.iterdir())


def _wait_none_left(name: str) -> None:
    """Wait until no process of this name lives. One that is about to be killed may make another meanwhile."""
    give_up_s = time.monotonic() + PATIENCE_S
    while pids := processes_named(name):
        assert time.monotonic() < give_up_s, "a process outlived its owner"
        with watched(pids) as wait_gone:
            wait_gone()


def _wait_gone(path: Path) -> None:
    """Wait until a session's file is removed, for which a final does not wait.

    Its directory may be there at once again: the next sandbox's, in the same place.
    """
    give_up_s = time.monotonic() + PATIENCE_S
    with contextlib.suppress(FileNotFoundError):
        while True:
            with contextlib.suppress(PermissionError):  # so the directory is still as the guest left it
                path.lstat()
            assert time.monotonic() < give_up_s, "a file outlived its owner"
            os.sched_yield()


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found
