"""What a guest must not reach: planted on the host before the attacks, looked after between them.

Theory of operation. A `Host` plants a secret wherever a careless sandbox could leak one: files that everybody may read,
the environment of this process (the worker's), inheritable descriptors, a keyring, System V ipc, sockets that
hand their secret to whoever connects. File modes are wide open on purpose: isolation has to hide them, not permissions.
`facts` tells the attacks where, never what. `damage` says what is not as it was. `close` takes everything away again.

Everything belongs to the `ExitStack`, in the order it was made.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

if TYPE_CHECKING:
    from types import TracebackType

_BASES = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108 - where anybody may write, if it is writable
_IPC_CREAT, _IPC_EXCL, _IPC_NOWAIT, _IPC_RMID, _IPC_STAT = 0o1000, 0o2000, 0o4000, 0, 2
_SESSION_KEYRING = -3
_KEYCTL_INVALIDATE = 21
_KEYS = {"x86_64": (248, 250), "aarch64": (217, 219)}
"""The numbers of add_key and keyctl."""
_IOPRIO_GET = {"x86_64": 252, "aarch64": 31}
_VICTIM = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.write(1, b"up")
while True:
    os.write(1, b"%d " % signal.sigwait(signal.valid_signals()))
"""
_START_TIMEOUT_MS = 20_000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p


class _State(msgspec.Struct, frozen=True):
    """What must be the same after every attack."""

    host_name: str
    mounts: list[str]
    interfaces: list[str]
    directory: str
    environment: dict[str, str]
    limits: list[str]
    priorities: tuple[int, int]
    """For the processor and for disks, of this process, which as an ordinary user has its guests' user."""

    @classmethod
    def now(cls) -> Self:
        return cls(
            socket.gethostname(),
            Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines(),
            sorted(name for _, name in socket.if_nameindex()),
            str(Path.cwd()),
            dict(os.environ),
            Path("/proc/self/limits").read_text(encoding="ascii").splitlines(),
            (os.getpriority(os.PRIO_PROCESS, 0), _libc.syscall(ctypes.c_long(_IOPRIO_GET[os.uname().machine]), 1, 0)),
        )


class Host:
    """The canaries. Use as a context manager, around the worker: what the worker inherits must be there before it."""

    def __init__(self) -> None:
        self.nonce = os.urandom(4).hex()
        self.secrets: dict[str, bytes] = {}
        """Every canary's words, by where it was planted."""
        self._stack = contextlib.ExitStack()
        self._directories: list[Path] = []
        self._files: dict[Path, bytes] = {}
        self._listeners: dict[str, socket.socket] = {}
        self._ipc: dict[str, int] = {}
        self._facts: dict[str, Any] = {}
        self._victim: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._stack.close)
            self._plant()
            on_failure.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def facts(self) -> dict[str, Any]:
        """What an attack may know: where the canaries are."""
        return self._facts

    def leaked(self, text: bytes) -> tuple[str, ...]:
        """Return the places whose secret occurs in `text`."""
        return tuple(name for name, secret in self.secrets.items() if secret in text)

    def damage(self) -> list[str]:
        """Say what is not as it was, and put it right where that can be done."""
        return [*self._file_damage(), *self._listener_damage(), *self._ipc_damage(), *self._victim_damage()] + [
            f"changed: {name}" for name in self._state_damage()
        ]

    # Planting.

    def _plant(self) -> None:
        self._plant_files()
        self._plant_listeners()
        self._plant_ipc()
        self._plant_key()
        self._plant_descriptors()
        os.environ["ENCLAVE_CANARY"] = self._secret("environment").decode()
        self._stack.callback(os.environ.pop, "ENCLAVE_CANARY")
        self._stack.callback(self._end_victim)
        self._start_victim()
        self._facts |= {
            "nonce": self.nonce,
            "directories": [str(path) for path in self._directories],
            "secret_files": [str(path) for path in self._files],
            "host_name": socket.gethostname(),
            "worker_pid": os.getpid(),
            "namespaces": {path.name: str(path.readlink()) for path in Path("/proc/self/ns").iterdir()},
            "addresses": _own_addresses(),
        }
        self._state = _State.now()

    def _secret(self, name: str) -> bytes:
        self.secrets[name] = f"enclave-canary.{name}.{os.urandom(8).hex()}".encode()
        return self.secrets[name]

    def _plant_files(self) -> None:
        for base in _BASES:
            if os.access(base, os.W_OK):
                directory = Path(tempfile.mkdtemp(prefix="enclave-attack-", dir=base))
                self._stack.callback(shutil.rmtree, directory, ignore_errors=True)
                directory.chmod(0o777)
                self._directories.append(directory)
                path = directory / "secret.txt"
                path.write_bytes(self._secret(f"file in {base}"))
                path.chmod(0o666)
                self._files[path] = path.read_bytes()
        if not self._directories:
            raise FileNotFoundError(f"none of {', '.join(_BASES)} can be written to: nowhere to plant a canary")

    def _plant_listeners(self) -> None:
        path, name = str(self._directories[0] / "socket"), f"enclave-attack-{self.nonce}"
        self._listen("tcp", socket.AF_INET, ("127.0.0.1", 0))
        self._listen("unix", socket.AF_UNIX, path)
        Path(path).chmod(0o777)
        self._listen("abstract", socket.AF_UNIX, f"\0{name}")
        udp = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        self._listeners["udp"] = udp
        for listener in self._listeners.values():
            listener.setblocking(False)
        ports = {kind: self._listeners[kind].getsockname()[1] for kind in ("tcp", "udp")}
        self._facts |= {"tcp_port": ports["tcp"], "udp_port": ports["udp"], "unix_path": path, "abstract": name}

    def _listen(self, name: str, family: int, address: object) -> None:
        listener = self._stack.enter_context(socket.socket(family))
        listener.bind(address)  # type: ignore[arg-type]  # one of each family's kind
        listener.listen()
        self._listeners[name] = listener

    def _plant_ipc(self) -> None:
        key = int(self.nonce, 16) & 0x7FFFFFFF or 1
        secret = self._secret("System V shared memory")
        shared = _libc.shmget(key, 4096, _IPC_CREAT | _IPC_EXCL | 0o666)
        if shared >= 0:
            self._stack.callback(_libc.shmctl, shared, _IPC_RMID, None)
            address = _libc.shmat(shared, None, 0)
            ctypes.memmove(address, secret, len(secret))
            _libc.shmdt(ctypes.c_void_p(address))
            self._ipc["shared memory"] = shared
        queue = _libc.msgget(key, _IPC_CREAT | _IPC_EXCL | 0o666)
        if queue >= 0:
            self._stack.callback(_libc.msgctl, queue, _IPC_RMID, None)
            secret = self._secret("System V message queue")
            _libc.msgsnd(queue, struct.pack("l", 1) + secret, len(secret), _IPC_NOWAIT)
            self._ipc["message queue"] = queue
        self._facts["ipc_key"] = key

    def _plant_key(self) -> None:
        add_key, keyctl = _KEYS[os.uname().machine]
        secret, name = self._secret("session keyring"), f"enclave-attack-{self.nonce}"
        arguments = b"user", name.encode(), secret, ctypes.c_size_t(len(secret)), ctypes.c_long(_SESSION_KEYRING)
        key = _libc.syscall(ctypes.c_long(add_key), *arguments)
        if key >= 0:
            invalidate = ctypes.c_long(keyctl), ctypes.c_long(_KEYCTL_INVALIDATE), ctypes.c_long(key)
            self._stack.callback(_libc.syscall, *invalidate)
        self._facts |= {"key_name": name, "key": key}

    def _plant_descriptors(self) -> None:
        """Open what a careless worker would let its children inherit."""
        for path, flags in ((next(iter(self._files)), os.O_RDWR), (Path("/"), os.O_RDONLY | os.O_DIRECTORY)):
            descriptor = os.open(path, flags)
            self._stack.callback(os.close, descriptor)
            os.set_inheritable(descriptor, True)

    def _start_victim(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", _VICTIM]
        environment = {"ENCLAVE_CANARY": self._secret("another process").decode()}
        self._victim = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # noqa: S603 - our own interpreter
        assert self._victim.stdout is not None, "it was asked for a pipe"
        ready, _, _ = select.select([self._victim.stdout], [], [], _START_TIMEOUT_MS / 1000)
        if not ready or os.read(self._victim.stdout.fileno(), 2) != b"up":
            raise ChildProcessError("the process that must not be touched did not start")
        os.set_blocking(self._victim.stdout.fileno(), False)
        self._facts["victim_pid"] = self._victim.pid

    def _end_victim(self) -> None:
        if self._victim is not None:
            self._victim.kill()
            self._victim.communicate()

    # Looking after.

    def _file_damage(self) -> list[str]:
        found = []
        for path, content in self._files.items():
            if not path.is_file() or path.read_bytes() != content:
                found.append(f"changed: {path}")
                path.write_bytes(content)
        for directory in self._directories:
            expected = {"secret.txt", "socket"} if directory == self._directories[0] else {"secret.txt"}
            found += [f"appeared: {path}" for path in directory.iterdir() if path.name not in expected]
        return found

    def _listener_damage(self) -> list[str]:
        touched = []
        for name, listener in self._listeners.items():
            with contextlib.suppress(BlockingIOError):
                if name == "udp":
                    listener.recv(4096)
                else:
                    listener.accept()[0].close()
                touched.append(f"reached: the host's {name} socket")
        return touched

    def _ipc_damage(self) -> list[str]:
        control = {"shared memory": _libc.shmctl, "message queue": _libc.msgctl}
        room = ctypes.create_string_buffer(512)
        return [
            f"gone: System V {kind}" for kind, number in self._ipc.items() if control[kind](number, _IPC_STAT, room)
        ]

    def _victim_damage(self) -> list[str]:
        assert self._victim is not None, "it is started with the canaries"
        assert self._victim.stdout is not None, "it was asked for a pipe"
        if self._victim.poll() is not None:
            status = self._victim.returncode
            self._victim.communicate()
            self._start_victim()
            return [f"a process of the host was ended: {status}"]
        state = Path(f"/proc/{self._victim.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        if state in "Tt":
            self._victim.send_signal(signal.SIGCONT)
            return ["a process of the host was stopped"]
        heard = self._victim.stdout.read() if select.select([self._victim.stdout], [], [], 0)[0] else b""
        return [f"a process of the host got signals: {heard.decode()}"] if heard else []

    def _state_damage(self) -> list[str]:
        now, before, self._state = _State.now(), self._state, _State.now()
        return [field for field in before.__struct_fields__ if getattr(before, field) != getattr(now, field)]


def _own_addresses() -> list[str]:
    """Return this host's addresses: loopback, and the one it would leave by. No packet is sent."""
    found = ["127.0.0.1"]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        found.append(probe.getsockname()[0])
    return found
