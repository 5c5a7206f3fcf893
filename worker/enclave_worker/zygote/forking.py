"""The zygote's own loop: it forks sandboxes, ends them, and tells the worker what became of them. See `main`."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # see `main`
import _socket  # `socket` is the same in a wrapper of Python and enums
import contextlib
import gc
import json
import os
import select
import struct

from . import frames, hot_pages, kernel, requests, steps, tree
from .driver import CONTROL_FD
from .self_test import namespaces, self_test

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself is too large for a zygote
    from _socket import socket as Socket  # noqa: N812 - a class
    from collections.abc import Callable
    from typing import NoReturn

    from .driver import Language
    from .frames import Message
    from .steps import Compiled

    Become = Callable[[int, int, int, int], NoReturn]  # of a slot, and descriptors: control socket, stdout, stderr

_MAX_REQUEST = 64
_PROCS = 16
"""What all live user namespaces have of one name in `/proc/sys` is in one list of that /proc's, which the kernel looks
through: with 1,000 sandboxes alive and one /proc, that was a fifth of what the next one cost."""
_INT = struct.Struct("i")


class Zygote:
    """Serves `spawn` and `kill` until its socket closes."""

    def __init__(
        self,
        control: Socket,
        plan: Message,
        groups: dict[str, int],
        language: Language,
        *,
        host_clocks: str,
        scratch: str,
    ) -> None:
        self._control = control
        self._language = language
        self._plan = plan
        self._ids: dict[int, tuple[int, int]] = {}  # pid -> sandbox id and slot
        self._pids: dict[int, int] = {}  # sandbox id -> pid
        self._waiting: list[list[int]] = []  # spawn requests: sandbox id, slot, uid, check
        self._scratch = scratch
        self._own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._procs = [self._proc] if scratch else _procs(self._proc)
        self._outside = {} if scratch else namespaces()
        if plan["own_clocks"]:  # shared with the sandboxes: what they must differ from is the host's
            self._outside["time"] = host_clocks
        shared = {"seccomp": bytes.fromhex(plan["seccomp_hex"]), "scratch": scratch, **groups}
        self._steps = steps.SlotSteps(plan["enclose"], shared, ("uid", "slot", "proc"))
        self._pinned = False
        self._knows_hot_pages = bool(scratch)  # without namespaces, which is for development, there is no haste
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def serve(self) -> None:
        """Run until the worker closes the socket."""
        _signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)  # only to be woken
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        poll.register(self._wake_reader, select.POLLIN)
        while True:
            for fd, _ in poll.poll(0 if self._waiting else None):
                if fd == self._wake_reader:
                    self._reap()
                elif not self._take_requests():
                    return
            # One fork between two looks at the socket: a kill never waits behind a burst of spawns.
            if self._waiting:
                self._spawn(*self._waiting.pop(0))

    def _take_requests(self) -> bool:
        while True:
            try:
                packet = self._control.recv(_MAX_REQUEST, _socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            if not packet:
                return False
            operation, *about = requests.unpack(packet)
            if operation == requests.SPAWN:
                self._waiting.append(about)
            else:
                self._kill(about[0])

    def _kill(self, sandbox_id: int) -> None:
        pid = self._pids.get(sandbox_id)
        if pid is not None:  # not reaped yet, so the number is still its own
            os.kill(pid, _signal.SIGKILL)
            return
        waiting = len(self._waiting)
        self._waiting = [request for request in self._waiting if request[0] != sandbox_id]
        if len(self._waiting) < waiting:  # else it is dead already, and the worker has been told
            self._tell_unspawned(sandbox_id, "it was killed before it was made")

    def _reap(self) -> None:
        try:
            while os.read(self._wake_reader, 4096):
                pass
        except BlockingIOError:
            pass
        while self._ids:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                return
            if pid not in self._ids:
                continue  # an orphan: only where there are no namespaces
            sandbox_id, slot = self._ids.pop(pid)
            del self._pids[sandbox_id]
            if self._scratch:
                tree.end_strays(self._ids)
                tree.remove(f"{self._scratch}/slot-{slot}")
            cpu_ms = (usage.ru_utime + usage.ru_stime) * 1000
            told = sandbox_id, status, cpu_ms, usage.ru_maxrss * 1024
            self._control.send(b'{"type":"exited","id":%d,"status":%d,"cpu_ms":%f,"peak_memory_bytes":%d}' % told)

    def _spawn(self, sandbox_id: int, slot: int, uid: int, check: int) -> None:
        self._fill(slot, uid)
        if not self._knows_hot_pages:
            self._knows_hot_pages = True
            self._find_hot_pages()
        opened: list[int] = []
        try:
            self._fork(sandbox_id, slot, opened, self._become_proven_sandbox if check else self._become_sandbox)
        except OSError as error:  # no process or descriptor to be had: those that live must not suffer for it
            self._unspawned(sandbox_id, error)
        finally:
            for fd in opened:
                os.close(fd)

    def _fill(self, slot: int, uid: int) -> None:
        self._steps.fill(uid=uid, slot=f"slot-{slot}", proc=self._procs[slot % len(self._procs)])

    def _fork(self, sandbox_id: int, slot: int, opened: list[int], become: Become) -> None:
        """Fork a sandbox, which is `become`, and tell the worker. Notes in `opened` what is to be closed."""
        one, other = _socket.socketpair()
        ours, theirs = one.detach(), other.detach()
        opened += (ours, theirs)
        out_reader, out_writer = os.pipe()
        opened += (out_reader, out_writer)
        err_reader, err_writer = os.pipe()
        opened += (err_reader, err_writer)
        pid = self._fork_into_namespace()
        if not pid:
            become(slot, theirs, out_writer, err_writer)
        self._ids[pid] = sandbox_id, slot
        self._pids[sandbox_id] = pid
        pidfd = os.pidfd_open(pid)
        opened.append(pidfd)
        send(self._control, b'{"type":"spawned","id":%d}' % sandbox_id, ours, out_reader, err_reader, pidfd)

    def _fork_into_namespace(self) -> int:
        if not self._scratch:
            # The kernel unshares a pid namespace only from the one we are in, so step back into our own each time.
            kernel.setns(self._own_pid_namespace, kernel.CLONE_NEWPID)
            kernel.unshare(kernel.CLONE_NEWPID)
        gc.freeze()  # what we have made since, no collection of the child's may touch
        return os.fork()

    def _find_hot_pages(self) -> None:
        """Have a fork that ends before it could be a guest's tell what it wrote to, and pin that."""
        try:
            ours, theirs = _socket.socketpair()
        except OSError:  # no descriptors: the sandbox that is wanted will say so
            return
        try:
            areas = hot_pages.writable(self._proc)
            pid = self._fork_into_namespace()
            if not pid:
                self._tell_hot_pages(theirs, areas)
            theirs.close()
            try:
                told = hot_pages.hear(ours.fileno())
            finally:
                os.kill(pid, _signal.SIGKILL)  # stopped, or stuck in a step: others must not wait for it
                os.waitpid(pid, 0)
            hot_pages.pin(told)
        except OSError:  # of the fork: the next one will say so; of the pin: `enclave doctor` does
            return
        finally:
            ours.close()
            theirs.close()
        self._pinned = True

    def _tell_hot_pages(self, zygote: Socket, areas: list[hot_pages.Range]) -> NoReturn:
        try:
            observer = hot_pages.Observer(self._proc, areas)
            null = os.open("/dev/null", os.O_RDWR)
            # Not in the slot's control groups: they count for its first session from here on.
            joins = steps.OPERATIONS["join"]
            self._enclose([step for step in self._steps.compiled if step[1] is not joins], null, null, null)
            self._language.settle()
            self._language.rehearse()
            hot_pages.tell(zygote.fileno(), observer.unshared())
        finally:
            os._exit(1)  # whatever failed will fail in the sandbox, which says so

    def _enclose(self, compiled: list[Compiled], control: int, out: int, err: int) -> None:
        """Let go of what is the zygote's, and perform the steps."""
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        # Nobody else's signal to its group reaches us, nor ours them. A session would do that too, and brings a
        # group of the scheduler's (autogroup), in which the fork waits for a turn anew: on a busy machine longer
        # than all that follows takes. Control groups share out the processor. Without namespaces a guest could
        # speak for all of a session: there it has one.
        os.setsid() if self._scratch else os.setpgid(0, 0)
        # The zygote's descriptors 0 to 3 are taken, so none of these three is among the targets.
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.dup2(control, CONTROL_FD)
        steps.perform(compiled)

    def _unspawned(self, sandbox_id: int, error: OSError) -> None:
        if sandbox_id in self._pids:
            self._kill(sandbox_id)  # it exists, but the worker can't be told of it: reaping it will
        else:
            self._tell_unspawned(sandbox_id, error.strerror or str(error))

    def _tell_unspawned(self, sandbox_id: int, reason: str) -> None:
        self._control.send(json.dumps({"type": "unspawned", "id": sandbox_id, "reason": reason}).encode())

    def _become_proven_sandbox(self, slot: int, control: int, out: int, err: int) -> NoReturn:
        """Be a sandbox that passes the self-test first."""
        self._become_sandbox(slot, control, out, err, check=True)

    def _become_sandbox(self, slot: int, control: int, out: int, err: int, *, check: bool = False) -> NoReturn:
        """Enclose this freshly forked process, then hand it to the guest's driver.

        From here on nothing may return to the zygote's loop, and nothing may be read from its socket.
        """
        try:
            self._enclose(self._steps.compiled, control, out, err)
            if check:
                self_test(self._outside, self._plan)
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            kernel.close_range(CONTROL_FD + 1, 0xFFFFFFFF)
            self._language.settle()
            if not self._pinned:
                self._language.rehearse()  # what every run writes to is copied here, while nobody waits
            gc.enable()
            self._language.serve()
        except steps.StepFailed as failure:
            frames.write(CONTROL_FD, frames.encode(failed(failure)))
        except BaseException as error:  # noqa: BLE001 - a bug of ours must not look like a guest's silence
            bug = steps.StepFailed("the driver", 0, f"{type(error).__name__}: {error}")
            frames.write(CONTROL_FD, frames.encode(failed(bug)))
        finally:
            os._exit(70)


def _procs(own: int) -> list[int]:
    """Return descriptors of several /proc, of which each slot uses one; where that fails, the one we have will do."""
    made: list[int] = []
    with contextlib.suppress(OSError):
        made.extend(kernel.detached_proc() for _ in range(_PROCS))
    return made or [own]


def send(control: Socket, packet: bytes, *descriptors: int) -> None:
    """Send the worker a packet, with copies of these descriptors."""
    packed = b"".join(map(_INT.pack, descriptors))
    control.sendmsg([packet], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)])


def failed(failure: steps.StepFailed) -> Message:
    """Return the message that says which step failed, and why."""
    return {"type": "failed", "step": failure.step, "errno": failure.errno, "reason": failure.reason}
