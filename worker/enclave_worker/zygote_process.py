"""The worker's handle on its zygote.

Driven by readiness callbacks, as its sandboxes are. The packet socket belongs to `ZygoteProcess`;
closing it is how the zygote is told to end, and with it every sandbox. The descriptors that come with a new sandbox
are handed to its `Sandbox` at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from enclave_protocol import SandboxError

from .readiness import Readiness
from .sandbox_process import Sandbox
from .usage import Exit, Usage, is_dying
from .zygote import requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from .sandbox.plan import Plan
    from .sandbox_owners import Home
    from .slots import Slot

log = logging.getLogger("enclave.worker")

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from enclave_worker.zygote.main import main; "
    "del sys.path[0]; main(int(sys.argv[2]))"
)
_ENVIRONMENT = {"LD_BIND_NOW": "1"}
"""Have the loader find all functions of all libraries at once: what it finds when it is first called, each fork of a
zygote would look for again. The zygote forgets it before it has any guest."""
_PREPARE_S = 120.0
"""How long a zygote may take to be prepared: what a profile preloads may be large, and the disk slow."""
_LEAVE_S = 5.0
"""How long a zygote may take to leave before its launcher ends it,"""
_END_S = 5.0
"""and that to do so before it is killed itself."""
_LOOK_S = 0.05
_MAX_PACKET = 1 << 16
_PIDFDS = 2
"""What comes with word that a zygote is prepared: its own, and that of the process with which all sandboxes end."""
_DESCRIPTORS = 4
"""What comes with a new sandbox: control socket, stdout, stderr, pidfd."""
_INT_BYTES = struct.calcsize("i")
_RIGHTS_BYTES = socket.CMSG_LEN(_DESCRIPTORS * _INT_BYTES)


class _Packet(msgspec.Struct):
    type: str
    id: int = 0
    status: int = 0
    cpu_ms: float = 0.0
    peak_memory_bytes: int = 0
    step: str = ""
    errno: int = 0
    reason: str = ""


_packets = msgspec.json.Decoder(_Packet)


class ZygoteProcess:
    """A zygote. Make one with `start`; it calls `on_death` once if it ends by itself.

    Its sandboxes outlive it then, until `stop`: see `enclave_worker.zygote.main`.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        on_death: Callable[[ZygoteProcess, str], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.readiness = Readiness(self.loop)
        """Of its own socket and its sandboxes' descriptors."""
        self.sandboxes: dict[int, Sandbox] = {}
        self.proven = False
        """Whether a sandbox of it has passed the self-test. Until then each is put to it: a ready one proves it."""
        self.forked = 0
        """Sandboxes asked for so far."""
        self._process = process
        self._control = control
        self._on_death = on_death
        self._prepared: asyncio.Future[None] = self.loop.create_future()
        self._requests: deque[bytes] = deque()
        self._writing = False  # whether the loop watches for room in the socket
        self._stopping = False  # or dead: nothing is asked of it any more
        self._pidfd = -1
        self._last_pidfd = -1  # of the process with which all its sandboxes end
        control.setblocking(False)
        self.readiness.watch(control.fileno(), self._on_packet)

    @classmethod
    async def start(cls, plan: Plan, interpreter: str, on_death: Callable[[ZygoteProcess, str], None]) -> ZygoteProcess:
        """Start a zygote and wait until it is prepared.

        Raises:
            SandboxError: a step failed; it names the step and the errno.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(ours.close)
            with theirs:
                # Nothing of our environment, and one descriptor: what a zygote never had, no guest can find.
                process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own interpreter; vfork, not blocking
                    [interpreter, "-I", "-S", "-X", "utf8", "-c", _BOOT, str(_package_root()), str(theirs.fileno())],
                    env=_ENVIRONMENT,
                    stdin=subprocess.DEVNULL,
                    stdout=_stderr(),
                    pass_fds=[theirs.fileno()],
                )
                on_failure.callback(process.wait)
                on_failure.callback(process.kill)  # it waits for its plan, and has made nothing yet
            self = cls(process, ours, on_death)
            on_failure.pop_all()
        self._request(msgspec.json.encode(plan))
        try:
            async with asyncio.timeout(_PREPARE_S):
                await self._prepared
        except TimeoutError:
            await self.stop()
            raise SandboxError("start the zygote", 0, f"it is not prepared after {_PREPARE_S:g} s") from None
        except BaseException:
            await self.stop()
            raise
        return self

    @property
    def pid(self) -> int:
        """The launcher's process id."""
        return self._process.pid

    def spawn(self, number: int, slot: Slot, home: Home) -> Sandbox:
        """Ask for a sandbox. It tells `home` when it is ready, or why it never will be."""
        sandbox = Sandbox(self, number, slot, home)
        self.sandboxes[number] = sandbox
        self.forked += 1
        self._request(requests.spawn(number, slot.number, slot.uid, check=not self.proven))
        return sandbox

    def unresponsive(self, reason: str) -> None:
        """Give up on a zygote that does not do its work: it is killed. Sandboxes that it has made live on."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._died(reason)

    def kill(self, number: int) -> None:
        """Kill a sandbox, whatever it is doing. Unknown numbers are ignored: it may be dead already."""
        self._request(requests.kill(number))

    async def stop(self) -> None:
        """End the zygote and every sandbox of it; returns when the kernel has reaped them all."""
        self._stopping = True
        self._close()
        if self.sandboxes:
            self._process.terminate()  # orphans: with the zygote gone, nothing else ends them
            self._lose(list(self.sandboxes.values()))
        self.readiness.close()
        if self._last_pidfd >= 0:
            os.close(self._last_pidfd)
            self._last_pidfd = -1
        # Its parent, the launcher, leaves only when the zygote's namespace is empty. Told to, it kills a zygote that
        # somebody stopped; should it be stopped itself, its own death is the zygote's.
        for within_s, hurry in ((_LEAVE_S, self._process.terminate), (_END_S, self._process.kill)):
            try:
                async with asyncio.timeout(within_s):
                    await self._wait_left()
            except TimeoutError:
                hurry()
            else:
                return
        await self._wait_left()

    async def _wait_left(self) -> None:
        # Not by a thread that waits: an interpreter that is ending, whose atexit handler stops us, starts no more.
        if self._process.poll() is not None:
            return
        left = asyncio.Event()
        try:
            descriptor = os.pidfd_open(self._process.pid)
        except OSError:  # none to spare: look from time to time
            while self._process.poll() is None:  # noqa: ASYNC110 - a process sets no event
                await asyncio.sleep(_LOOK_S)
            return
        self.loop.add_reader(descriptor, left.set)
        try:
            await left.wait()
        finally:
            self.loop.remove_reader(descriptor)
            os.close(descriptor)
        self._process.wait()

    def _request(self, packet: bytes) -> None:
        if self._stopping:
            return
        self._requests.append(packet)
        if len(self._requests) == 1:
            self._send_requests()

    def _send_requests(self) -> None:
        while self._requests:
            try:
                self._control.send(self._requests[0])
            except BlockingIOError:
                if not self._writing:
                    self._writing = True
                    self.loop.add_writer(self._control.fileno(), self._send_requests)
                return
            except ConnectionError:
                self._requests.clear()  # it died; the reader is about to learn it
                break
            except OSError as error:  # a plan larger than this host's sockets take, say
                self._requests.clear()
                # Soon: whoever asks is in the middle of it.
                self.loop.call_soon(self.unresponsive, f"it can't be asked: {error.strerror or error}")
                break
            self._requests.popleft()
        if self._writing:
            self._writing = False
            self.loop.remove_writer(self._control.fileno())

    def _on_packet(self) -> None:
        for _ in range(64):  # then let others have a turn
            try:
                data, descriptors = _receive(self._control)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self._died("it closed its socket")
                return
            self._handle(data, descriptors)
            if self._stopping:
                return

    def _handle(self, data: bytes, descriptors: list[int]) -> None:
        """Do what a packet says. Our own code sent it; if it makes no sense all the same, that code is broken."""
        try:
            packet = _packets.decode(data)
        except (msgspec.MsgspecError, UnicodeError):
            packet = _Packet("")
        sandbox = self.sandboxes.get(packet.id)
        if packet.type == "spawned" and sandbox is not None and not sandbox.is_open:
            self._spawned(sandbox, descriptors)
            return
        if packet.type == "prepared" and len(descriptors) == _PIDFDS and not self._prepared.done():
            self._pidfd, self._last_pidfd = descriptors
            self._prepared.set_result(None)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        if packet.type == "exited" and sandbox is not None:
            self._exited(packet)
        elif packet.type == "unspawned" and sandbox is not None:
            log.error("sandbox %d: no process: %s", packet.id, packet.reason)
            self.sandboxes.pop(packet.id).exited(Exit(0, lost=packet.reason))
        elif packet.type == "failed":
            self._died(packet.reason, SandboxError(packet.step, packet.errno, packet.reason))
        else:
            self.unresponsive(f"it sent a packet that makes no sense: {data[:100]!r}")

    def _spawned(self, sandbox: Sandbox, descriptors: list[int]) -> None:
        if len(descriptors) == _DESCRIPTORS:
            sandbox.opened(*descriptors)
            return
        # We have none to spare, so the kernel dropped some. The zygote still knows it; its death is reported as ever.
        log.error("sandbox %d: no file descriptors left", sandbox.number)
        for descriptor in descriptors:
            os.close(descriptor)
        sandbox.kill()

    def _exited(self, packet: _Packet) -> None:
        sandbox = self.sandboxes.pop(packet.id)
        usage = Usage(cpu_ms=packet.cpu_ms, peak_memory_bytes=packet.peak_memory_bytes)
        sandbox.exited(Exit(packet.status, usage))

    def _died(self, reason: str, error: SandboxError | None = None) -> None:
        if self._stopping:
            return
        self._stopping = True
        if self._prepared.done():
            self._on_death(self, reason)  # first: whoever loses a sandbox must not ask for another here
        else:
            self._prepared.set_exception(error or SandboxError("start the zygote", 0, reason))
        self._close()
        self._lose([sandbox for sandbox in self.sandboxes.values() if not sandbox.is_open])
        for sandbox in self.sandboxes.values():
            sandbox.watch_end(self._orphan_ended)

    def _orphan_ended(self, sandbox: Sandbox) -> None:
        del self.sandboxes[sandbox.number]
        sandbox.exited(Exit(status=None, lost="the process above its zygote ended" if self._is_lost() else ""))

    def _is_lost(self) -> bool:
        """Whether sandboxes end because what they all depend on does, and not each by itself."""
        try:
            return is_dying(self._last_pidfd)
        except OSError:  # no descriptor to look with
            return False

    def _lose(self, sandboxes: list[Sandbox]) -> None:
        for sandbox in sandboxes:
            del self.sandboxes[sandbox.number]
            sandbox.exited(Exit(status=None, lost="its zygote ended"))

    def _close(self) -> None:
        if self._control.fileno() >= 0:
            self.readiness.forget(self._control.fileno())
            if self._writing:
                self.loop.remove_writer(self._control.fileno())
            self._control.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next packet and its descriptors, which no program that we start inherits.

    `socket.recv_fds` cannot promise that: it leaves its flags aside.
    """
    data, ancillary, _, _ = control.recvmsg(_MAX_PACKET, _RIGHTS_BYTES, socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, packed in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            # Of a list that the kernel cut, the last one may be a part.
            descriptors += struct.unpack_from(f"{len(packed) // _INT_BYTES}i", packed)
    return data, descriptors


def _stderr() -> int:
    """Return where a zygote may write, which must not be the program's stdout: it may carry data."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # None, or replaced by something that is no file
        return subprocess.DEVNULL


def _package_root() -> Path:
    return Path(__file__).resolve().parent.parent
