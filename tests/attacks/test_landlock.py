"""Landlock, proven where other layers would hide it: the real steps and a mistake of ours, with it and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import pytest

from enclave_worker.sandbox.levels import LEVELS
from enclave_worker.sandbox.plan import make_plan
from enclave_worker.sandbox.spec import python_spec
from enclave_worker.zygote import kernel
from tests.support import PATIENCE_S, USER, ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enclave_worker.sandbox.plan import Plan, Privilege

    from .conftest import Attack

ABI = kernel.landlock_abi()
SCRIPT = Path(__file__).with_name("mistaken.py")

pytestmark = pytest.mark.skipif(ABI == 0, reason="this kernel has no Landlock")
needs_truncate = pytest.mark.skipif(ABI < 3, reason="this kernel's Landlock does not know of truncating")
needs_scopes = pytest.mark.skipif(
    ABI < 6, reason="this kernel's Landlock does not know of signals and abstract sockets"
)


@pytest.fixture
def host() -> Iterator[Path]:
    """A directory of the host's in which everybody may do everything, so that no permission hides who refuses."""
    # Not below /tmp, which in a sandbox is another.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o777)
        (directory / "secret").write_text("the host's")
        (directory / "secret").chmod(0o666)
        (directory / "empty").mkdir()
        (directory / "empty").chmod(0o777)
        yield directory


class Mistaken(Protocol):
    """Runs an attack in a sandbox with mistakes in it; returns what it assigned to `result`."""

    def __call__(self, code: str, *, landlock: bool = True, writable: bool = False, bare_net: bool = False) -> Any: ...


@pytest.fixture(params=["root", "user"])
def mistaken(request: pytest.FixtureRequest, host: Path) -> Mistaken:
    """As either of those who may start a worker."""
    privilege: Privilege = request.param
    if privilege == "root" and not kernel.acts_as_root():
        pytest.skip("only root can try what root does")

    def run(code: str, *, landlock: bool = True, writable: bool = False, bare_net: bool = False) -> Any:
        plan = plan_of(privilege, host)
        if not landlock:
            plan.enclose[:] = [step for step in plan.enclose if step[0] != "Landlock"]
        if writable:
            plan.prepare[:] = [step for step in plan.prepare if step[0] != f"read-only {host}"]
        if bare_net:
            plan.enclose[:] = [without_network_namespace(step) for step in plan.enclose if step[0] != "loopback up"]
        command = [sys.executable, str(SCRIPT)]
        order = {"plan": plan, "directory": str(host), "abstract": f"enclave-{os.getpid()}-{host.name}", "code": code}
        done = subprocess.run(
            command if privilege == "root" else ordinary_user(command),
            input=msgspec.json.encode(order),
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.stdout, done.stderr.decode()
        return json.loads(done.stdout)

    return run


def plan_of(privilege: Privilege, host: Path) -> Plan:
    spec = python_spec(LEVELS["SECURE"].resources, counted=False)
    spec = msgspec.structs.replace(spec, visible=(*spec.visible, str(host)))
    user = 0 if privilege == "root" else USER if os.geteuid() == 0 else os.geteuid()
    group = 0 if privilege == "root" else USER if os.geteuid() == 0 else os.getegid()
    return make_plan(spec, privilege=privilege, uid=user, gid=group, landlock_abi=ABI, own_clocks=False)


def without_network_namespace(step: list[str | int | bool | None]) -> list[str | int | bool | None]:
    if step[1] == "unshare" and isinstance(step[2], int) and step[2] != kernel.CLONE_NEWUSER:
        return [step[0], "unshare", step[2] & ~kernel.CLONE_NEWNET]
    return step


THROUGH_A_LEAKED_DESCRIPTOR = {
    "reading": "os.open('secret', os.O_RDONLY, dir_fd=held)",
    "writing": "os.open('secret', os.O_WRONLY, dir_fd=held)",
    "listing": "os.open('empty', os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)",
    "climbing": "os.open('../..', os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)",
    "its working directory": "(os.fchdir(held), os.open('secret', os.O_RDONLY))",
    "a link of proc": "open(f'/proc/self/fd/{held}/secret')",
    "making a file": "os.open('made', os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=held)",
    "making a directory": "os.mkdir('made', dir_fd=held)",
    "making a link": "os.symlink('secret', 'made', dir_fd=held)",
    "making a fifo": "os.mkfifo('made', dir_fd=held)",
    "removing a file": "os.unlink('secret', dir_fd=held)",
    "removing a directory": "os.rmdir('empty', dir_fd=held)",
    "renaming": "os.rename('secret', 'moved', src_dir_fd=held, dst_dir_fd=held)",
    "hard-linking": "os.link('secret', 'linked', src_dir_fd=held, dst_dir_fd=held)",
}


@pytest.mark.parametrize("action", THROUGH_A_LEAKED_DESCRIPTOR.values(), ids=THROUGH_A_LEAKED_DESCRIPTOR)
def test_a_leaked_descriptor_of_a_host_directory_opens_nothing(mistaken: Mistaken, action: str) -> None:
    code = f"result = attempt(lambda: {action})"

    assert mistaken(code) == "EACCES"
    assert mistaken(code, landlock=False) == "WORKED", "it is Landlock that refuses"


ON_A_WRITABLE_BIND = {
    "writing": "os.open('{host}/secret', os.O_WRONLY)",
    "making a file": "os.open('{host}/made', os.O_WRONLY | os.O_CREAT, 0o600)",
    "removing a file": "os.unlink('{host}/secret')",
    "renaming": "os.rename('{host}/secret', '{host}/moved')",
    "moving out": "os.rename('{host}/secret', '{host}/empty/moved')",
    "planting a link": "os.symlink('/etc/passwd', '{host}/planted')",
    "a socket": "socket.socket(socket.AF_UNIX).bind('{host}/socket')",
}


@pytest.mark.parametrize("action", ON_A_WRITABLE_BIND.values(), ids=ON_A_WRITABLE_BIND)
def test_a_directory_bound_writable_by_mistake_cannot_be_written(mistaken: Mistaken, host: Path, action: str) -> None:
    code = f"result = attempt(lambda: {action.format(host=host)})"

    assert mistaken(code, writable=True) == "EACCES"
    assert (host / "secret").read_text() == "the host's"
    assert mistaken(code, writable=True, landlock=False) == "WORKED", "it is Landlock that refuses"


@needs_truncate
def test_a_file_bound_writable_by_mistake_cannot_be_truncated(mistaken: Mistaken, host: Path) -> None:
    code = f"result = attempt(lambda: os.truncate('{host}/secret', 0))"

    assert mistaken(code, writable=True) == "EACCES"
    assert (host / "secret").read_text() == "the host's"
    assert mistaken(code, writable=True, landlock=False) == "WORKED"


def test_what_is_bound_can_still_be_read(mistaken: Mistaken, host: Path) -> None:
    assert mistaken(f"result = open('{host}/secret').read()") == "the host's"


@needs_scopes
def test_a_signal_to_a_process_outside_is_refused(mistaken: Mistaken) -> None:
    code = "result = [attempt(lambda: os.kill(neighbour, signal)) for signal in (0, 15, 9)]"

    assert mistaken(code) == ["EPERM"] * 3
    assert mistaken(code, landlock=False)[:2] == ["WORKED"] * 2


@needs_scopes
def test_an_abstract_socket_of_the_host_is_refused_in_its_own_network(mistaken: Mistaken) -> None:
    code = "result = attempt(lambda: socket.socket(socket.AF_UNIX).connect(abstract))"

    assert mistaken(code, bare_net=True) == "EPERM"
    assert mistaken(code, bare_net=True, landlock=False) == "WORKED"


ALLOWED = """
import fcntl, multiprocessing, signal, subprocess, tempfile
for directory in ('/tmp', '/workspace', '/dev/shm'):
    os.makedirs(directory + '/a/b')
    os.mkdir(directory + '/c')
    with open(directory + '/a/file', 'w') as file:
        file.write('text')
    os.truncate(directory + '/a/file', 2)
    os.link(directory + '/a/file', directory + '/c/linked')
    os.rename(directory + '/a/file', directory + '/c/moved')
    os.rename(directory + '/a', directory + '/c/a')
    os.symlink('moved', directory + '/c/symbolic')
    assert open(directory + '/c/symbolic').read() == open(directory + '/c/linked').read() == 'te'
    os.mkfifo(directory + '/fifo')
    server = socket.socket(socket.AF_UNIX)
    server.bind(directory + '/socket')
    server.listen()
    socket.socket(socket.AF_UNIX).connect(directory + '/socket')
    unnamed = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(unnamed, b'x')
    os.ftruncate(unnamed, 0)
    os.link(f'/proc/self/fd/{unnamed}', directory + '/named', src_dir_fd=unnamed)
    open(f'/proc/self/fd/{unnamed}', 'r+').close()
    os.rmdir(directory + '/c/a/b')
    os.unlink(directory + '/c/linked')

abstract = socket.socket(socket.AF_UNIX)
abstract.bind('\\0name')
abstract.listen()
socket.socket(socket.AF_UNIX).connect('\\0name')

child = subprocess.Popen(['/bin/sh', '-c', 'echo said > /dev/null; read line'], stdin=subprocess.PIPE)
child.send_signal(signal.SIGTERM)
assert child.wait() == -signal.SIGTERM
queue = multiprocessing.Queue()
process = multiprocessing.Process(target=queue.put, args=('from a process',))
process.start()
assert queue.get() == 'from a process'
process.join()
assert multiprocessing.Semaphore().acquire()

for name in ('null', 'zero', 'full', 'random', 'urandom'):
    open('/dev/' + name, 'rb').close()
for name in ('null', 'zero'):
    open('/dev/' + name, 'w').write('x')
reader, writer = os.pipe()
os.write(writer, b'x')
assert open(f'/proc/self/fd/{reader}', 'rb').read(1) == b'x'
try:
    fcntl.ioctl(open('/dev/null'), 0x5401)
except OSError as error:
    return errno.errorcode[error.errno]
"""


def test_a_guest_can_do_everything_with_what_is_its_own(attack: Attack) -> None:
    # Down to the errno by which a library sees that a device is no terminal.
    assert attack(ALLOWED).result == "ENOTTY"


def test_a_guest_cannot_stack_landlock_upon_landlock(attack: Attack) -> None:
    assert [attack(f"return call({number}, 0, 0, 1)").result for number in (444, 445, 446)] == ["ENOSYS"] * 3


@pytest.mark.parametrize("kind", [0o020000, 0o060000])
def test_a_device_node_is_refused_before_anybody_asks_for_privileges(attack: Attack, kind: int) -> None:
    # Without Landlock it is EPERM. A whiteout, 0:0, is no device to newer kernels: they take it for a regular file.
    assert attack(f"return attempt(lambda: os.mknod('/tmp/null', {kind}, 0x103))").result == "EACCES"
