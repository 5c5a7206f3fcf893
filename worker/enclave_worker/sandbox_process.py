"""The worker's handle on one sandbox.

Theory of operation. Everything here is driven by readiness callbacks, not by tasks: a sandbox is four descriptors and
a few bytes of state, and a thousand of them cost nothing while they wait.

Ownership. The zygote makes a sandbox's socket, pipes and pidfd and sends us our ends; from `opened` on they belong to
the `Sandbox`. It closes what the guest speaks through in `dismiss`, when nobody listens any more, and the rest when the
zygote has reported the death, or is dead itself. The zygote keeps none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from .usage import Exit, Usage, first_process_usage, is_dying, is_shortage, pid_of, tree_memory_bytes
from .zygote import frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from .output import Stream
    from .sandbox_owners import Home, Owner
    from .slots import Slot
    from .zygote_process import ZygoteProcess

log = logging.getLogger("enclave.worker")

_READ_BYTES = 65536
_SMALL_READ_BYTES = 4096
_SMALL_OUTPUT_BYTES = 16 * 1024
_REST_S = 0.001
"""How long a pipe that little came from is left alone. A guest that prints line by line would otherwise make an event
of each, which costs every hop more than the guest; what it prints meanwhile comes together."""
_MAX_CONTROL_READS = 256
"""More than the small reads in the largest socket buffer an ordinary process can ask for."""
_MAX_UNREAD_BYTES = 16 * 1024 * 1024
"""What may wait for a guest that does not read; more breaks it."""
_MAX_DRAIN_READS = 17
"""One more than the largest pipe an ordinary process can make holds, in reads."""


class Sandbox:
    """One sandbox: a control socket, two output pipes and somebody who listens."""

    def __init__(self, process: ZygoteProcess, number: int, slot: Slot, home: Home) -> None:
        self.process = process
        self.number = number
        self.slot = slot
        slot.on_oom = self._on_oom
        self.home = home
        self.owner: Owner = home
        self.max_frame_bytes = 1 << 20
        self._loop = process.loop
        self._readiness = process.readiness
        self._control = -1
        self._pipes: dict[Stream, int] = {}
        self._pidfd = -1
        self._pid = 0  # 0 as long as nobody has asked
        self._inherited_bytes = 0  # of the zygote's memory; counted only where there are no control groups
        self._inbox = bytearray()
        self._outbox = bytearray()
        self._unwanted: set[Stream] = set()
        self._writing = False  # whether the loop watches for room in the socket
        self._paused = False
        self._hung_up = False
        self._dismissed = False
        self._closed = False
        self._ends = False  # whether the loop watches for its end
        self._fault = ""  # what went wrong on our side, if anything did

    def __repr__(self) -> str:
        return f"<Sandbox {self.number} {'open' if self.is_open else 'starting'} owner={type(self.owner).__name__}>"

    def opened(self, control: int, out: int, err: int, pidfd: int) -> None:
        """Take over the descriptors that the zygote sent."""
        self._pidfd = pidfd
        self._control = control
        self._pipes = {"stdout": out, "stderr": err}
        for fd in (control, out, err):
            os.set_blocking(fd, False)
        if self.slot.group is None:
            with contextlib.suppress(OSError):  # unknown, none is taken off: rather too much is counted than too little
                self._inherited_bytes = self.held_bytes()
        self._watch_all()

    def send(self, message: dict[str, Any]) -> None:
        """Send one frame. Never blocks: a guest that does not read is ended when too much waits for it."""
        if self._control < 0:
            return
        try:
            body = msgspec.json.encode(message)
            self._outbox += frames.HEADER.pack(len(body)) + body
        except MemoryError as error:
            self._give_up(error)
            return
        if len(self._outbox) > _MAX_UNREAD_BYTES:
            self._outbox.clear()
            self.owner.on_broken(self, f"{_MAX_UNREAD_BYTES} bytes wait for a guest that does not read")
        elif not self._writing:
            self._flush()

    def kill(self) -> None:
        """End every process of the sandbox. `on_exit` follows."""
        if self._pidfd < 0:
            self.process.kill(self.number)  # not forked yet, or the zygote's word of it is on its way
        elif not self._closed:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def dismiss(self, owner: Owner) -> None:
        """Kill it for good: `owner` hears of its end, and nobody of anything else."""
        self.owner = owner
        self._dismissed = True
        self.kill()
        self._hush()

    @property
    def is_open(self) -> bool:
        """Whether the zygote has forked it."""
        return self._pidfd >= 0

    @property
    def pid(self) -> int:
        """The number of its first process as we see it; the zygote sees another one. 0 if it has ended.

        Raises:
            OSError: there is no descriptor to ask with.
        """
        if not self._pid and not self._closed:
            self._pid = pid_of(self._pidfd)
        return self._pid

    def watch_end(self, on_end: Callable[[Sandbox], None]) -> None:
        """Call `on_end` when every process of it is gone. For one whose zygote is: nobody else will say so."""
        self._ends = True
        self._loop.add_reader(self._pidfd, on_end, self)

    def usage(self) -> Usage:
        """Ask the kernel what the sandbox has used so far. Raises OSError if it can't be asked."""
        group = self.slot.group
        return group.usage() if group is not None else self._usage_of_first()

    def _usage_of_first(self) -> Usage:
        """The same without control groups: the first process, and the children that it waited for."""
        try:
            if not self.pid:
                raise ProcessLookupError
            usage = first_process_usage(self.pid)
            signal.pidfd_send_signal(self._pidfd, 0)  # fails if the number has become somebody else's meanwhile
        except OSError as error:
            if is_shortage(error):
                raise
            return Usage()  # it just died; nobody knows any more
        return usage

    def held_bytes(self) -> int:
        """Return what memory its processes hold. For hosts without control groups: files in tmpfs are not seen.

        Raises:
            OSError: there is no descriptor to look with.
        """
        return tree_memory_bytes(self.pid, self._inherited_bytes) if self.pid else 0

    def is_dying(self) -> bool:
        """Whether its first process has begun to end, of which word is on its way. Or nobody can tell."""
        try:
            return is_dying(self._pidfd)
        except OSError:
            return True

    def limit_memory(self, memory_bytes: int) -> None:
        """Lower the memory limit. Without control groups nothing happens here: the session watches."""
        if self.slot.group is not None:
            self.slot.group.limit_memory(memory_bytes)

    def pause(self) -> None:
        """Stop reading from the guest: it blocks once its pipes are full."""
        if not self._paused and self._control >= 0:
            self._paused = True
            for fd in (self._control, *self._pipes.values()):
                self._readiness.forget(fd)

    def resume(self) -> None:
        """Read again."""
        if self._paused and self._control >= 0 and not self._fault:
            self._paused = False
            self._watch_all()

    def _watch_all(self) -> None:
        try:
            if not self._hung_up:
                self._readiness.watch(self._control, self._on_control)
            for stream, fd in self._pipes.items():
                self._readiness.watch(fd, partial(self._on_pipe, stream))
        except OSError as error:  # the kernel has no room for one more: unheard, a guest would wait till its deadline
            self._give_up(error)

    def exited(self, exit_: Exit) -> None:
        """The zygote reaped it: hand over what is still in the pipes, let go of them, and tell the owner."""
        try:
            self._read_rest()
        except Exception as error:  # noqa: BLE001 - as in `_on_control`
            self._give_up(error)
        self._close()
        if self._fault:
            exit_ = Exit(exit_.status, exit_.usage, self._fault)
        if self.slot.group is not None and not self._dismissed:
            try:
                exit_ = Exit(exit_.status, self.slot.group.usage(), exit_.lost)
            except Exception:  # an ending must not depend on a measurement; the zygote's count will have to do
                log.exception("what sandbox %d used can't be told", self.number)
        self.owner.on_exit(self, exit_)

    def _read_rest(self) -> None:
        if self._control < 0 or self._fault:
            return
        # All of it: a large result may still lie in the socket.
        for _ in range(_MAX_CONTROL_READS):
            if not self._read_control():
                break
        self.drain()

    def drain(self) -> None:
        """Read what was written so far, so that it comes before whatever is told next."""
        for stream, fd in list(self._pipes.items()):
            # A pipe's capacity at most: a guest that keeps writing must not keep us here.
            for _ in range(_MAX_DRAIN_READS):
                if self._read_pipe(stream, fd) < _READ_BYTES:
                    break

    def _close(self) -> None:
        """Let go of every descriptor."""
        if self._closed:
            return
        self._closed = True
        self._hush()
        if self._pidfd >= 0:
            if self._ends:
                self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)

    def _hush(self) -> None:
        """Let go of what the guest speaks through."""
        if self._control < 0:
            return
        if self._writing:
            self._loop.remove_writer(self._control)
        for fd in (self._control, *self._pipes.values()):
            self._readiness.forget(fd)
            os.close(fd)
        self._control = -1
        self._pipes = {}

    def _on_oom(self) -> None:
        self.owner.on_oom(self)

    def _on_control(self) -> None:
        try:
            self._read_control()
        except Exception as error:  # noqa: BLE001 - this guest's trouble, such as a MemoryError, and no other's
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """We failed: what was read and not told on is lost, so nothing that comes after it may be told either."""
        if self._fault or self._control < 0:
            return
        self._fault = f"the worker failed: {type(error).__name__}: {error}".removesuffix(": ")
        log.error("sandbox %d: given up", self.number, exc_info=error)
        self._inbox.clear()
        self._outbox.clear()
        self.pause()
        self.kill()

    def _read_control(self) -> bool:
        """Read once and handle what that completes; say whether there may be more."""
        if self._control < 0:
            return False
        try:
            # A plain read: a descriptor that a guest passes along is dropped by the kernel, never ours.
            data = os.read(self._control, self._wanted_bytes())
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._readiness.forget(self._control)
            if not self._hung_up:
                self._hung_up = True
                self.owner.on_hangup(self)
            return False
        self._inbox += data
        body = self._next_frame()
        if body is not None and self.owner is not self.home:
            # What was printed before a frame was sent comes before it. Once for all frames of this read: the pipes hold
            # it by now, and a guest that floods all three descriptors must not keep us here. Before there is a guest,
            # nobody prints.
            self.drain()
        while body is not None:
            self.owner.on_frame(self, body)
            body = self._next_frame() if self._control >= 0 else None
        return True

    def _wanted_bytes(self) -> int:
        """How much to read: the rest of the frame under way, or little, so that a flood of them shares the loop."""
        inbox, header = self._inbox, frames.HEADER
        if len(inbox) < header.size:
            return _SMALL_READ_BYTES
        size: int = header.unpack_from(inbox)[0]
        return min(_READ_BYTES, max(_SMALL_READ_BYTES, header.size + size - len(inbox)))

    def _next_frame(self) -> bytes | None:
        inbox, header = self._inbox, frames.HEADER
        if len(inbox) < header.size:
            return None
        (size,) = header.unpack_from(inbox)
        if size > self.max_frame_bytes:
            inbox.clear()
            self.owner.on_broken(self, f"a frame of {size} bytes, more than {self.max_frame_bytes}")
            return None
        end = header.size + size
        if len(inbox) < end:
            return None
        body = bytes(inbox[header.size : end])
        del inbox[:end]
        return body

    def _on_pipe(self, stream: Stream) -> None:
        fd = self._pipes[stream]
        try:
            size = self._read_pipe(stream, fd)
        except Exception as error:  # noqa: BLE001 - as in `_on_control`
            self._give_up(error)
            return
        if 0 < size < _SMALL_OUTPUT_BYTES and stream in self._pipes:
            self._readiness.forget(fd)
            self._loop.call_later(_REST_S, self._watch, stream)

    def _watch(self, stream: Stream) -> None:
        if stream in self._pipes and not self._paused:
            try:
                self._readiness.watch(self._pipes[stream], partial(self._on_pipe, stream))
            except OSError as error:  # as in `_watch_all`
                self._give_up(error)

    def _read_pipe(self, stream: Stream, fd: int) -> int:
        """Read once; return how much that was."""
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self._readiness.forget(fd)
            return 0
        if stream in self._unwanted:
            self.owner.on_dropped(self, stream, len(data))
        elif not self.owner.on_output(self, stream, data):
            self._unwanted.add(stream)
        return len(data)

    def _flush(self) -> None:
        try:
            sent = os.write(self._control, self._outbox)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._outbox.clear()  # the guest is gone; its death is reported by the zygote
            sent = 0
        del self._outbox[:sent]
        waits = bool(self._outbox)
        if waits != self._writing:
            self._writing = waits
            if waits:
                self._loop.add_writer(self._control, self._flush)
            else:
                self._loop.remove_writer(self._control)
