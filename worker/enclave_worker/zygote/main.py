"""The zygote: a prepared process that sandboxes are forked from.

Theory of operation. Five roles, each the parent of the next:

    worker ──exec──▶ launcher ──fork──▶ keeper ──fork──▶ zygote ──fork──▶ sandbox, sandbox, …

The worker execs the launcher with an empty environment and one descriptor, a SEQPACKET socket, over which the first
message is the plan. The launcher enters a new pid namespace (and, for an ordinary user, a user namespace) by forking
the keeper into it as pid 1, and then only waits for it. The keeper forks the zygote and only reaps. The zygote imports
what guests need, builds and enters the root they will see, and from then on serves two requests: `spawn` and `kill`. It
has one thread and holds no secret.

Each sandbox is pid 1 of a pid namespace of its own, below the keeper's. So the kernel ends a sandbox's whole tree with
its first process, and every sandbox with the keeper: nothing depends on a list of processes, and a guest can't opt
out. The zygote ends when its socket does, which is when the worker lets go of it or is gone, however it went, and the
keeper with it; the launcher's death signal backs that up. A zygote that dies in any other way takes nobody along: its
sandboxes become the keeper's, which stays for the last of them.

On a host without namespaces, where the plan names a `scratch` directory, none of this comes from the kernel: `tree`
does it instead, and a sandbox's number is any.

The socket carries one message a packet. To the zygote: the plan in JSON, then `requests`. From it, in JSON:
`prepared`; `spawned` with four descriptors (control socket, stdout, stderr, a pidfd), which only the worker holds from
then on; `unspawned` with the reason, if there was no process to be had;
`exited` with the wait status and the kernel's count of CPU time and memory;
and `failed` with the name of the step and the errno, before it exits. A sandbox that fails a step says so on its own
control socket.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed has no stub; `signal` wraps each call in enums, which a fork then copies
import _socket  # `socket` is the same in a wrapper of Python and enums
import base64
import gc
import json
import os
import select
import struct
import sys

from . import frames, hot_pages, kernel, requests, steps, tree

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself is too large for a zygote
    from _socket import socket as Socket  # noqa: N812 - a class
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from .frames import Message
    from .steps import Compiled

_MAX_PACKET = 1 << 18
_MAX_REQUEST = 64
_INT = struct.Struct("i")
_CONTROL_FD = 3
_CHARACTER_DEVICE = 0o020000
_NULL_DEVICE = 0x103
_EACCES = 13
_PF_EXITING = 0x4  # include/linux/sched.h: "Getting shut down"
_NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")


class Zygote:
    """Serves `spawn` and `kill` until its socket closes."""

    def __init__(
        self,
        control: Socket,
        plan: Message,
        groups: dict[str, int],
        run_guest: Callable[[Callable[[], None]], None],
        *,
        host_clocks: str,
        scratch: str,
    ) -> None:
        self._control = control
        self._groups = groups
        self._run_guest = run_guest
        self._plan = plan
        self._ids: dict[int, tuple[int, int]] = {}  # pid -> sandbox id and slot
        self._pids: dict[int, int] = {}  # sandbox id -> pid
        self._waiting: list[list[int]] = []  # spawn requests: sandbox id, slot, uid, check
        self._compiled: dict[int, list[Compiled]] = {}  # by slot; those in use are few
        self._scratch = scratch
        self._own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.pidfd = os.pidfd_open(os.getpid())
        """To be given to the worker."""
        self._outside = {} if scratch else _namespaces(_NAMESPACES)
        if plan["own_clocks"]:  # shared with the sandboxes: what they must differ from is the host's
            self._outside["time"] = host_clocks
        self._filter = base64.b64decode(plan["seccomp_base64"])
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
        else:
            self._waiting = [request for request in self._waiting if request[0] != sandbox_id]

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
        if slot not in self._compiled:
            values = {"uid": uid, "slot": f"slot-{slot}", "proc": self._proc, "seccomp": self._filter}
            values["scratch"] = self._scratch
            self._compiled[slot] = steps.compile_steps(self._plan["enclose"], values | self._groups)
        if not self._knows_hot_pages:
            self._knows_hot_pages = True
            self._find_hot_pages(slot)
        opened: list[int] = []
        try:
            self._fork(sandbox_id, slot, opened, check=bool(check))
        except OSError as error:  # no process or descriptor to be had: those that live must not suffer for it
            self._unspawned(sandbox_id, error)
        finally:
            for fd in opened:
                os.close(fd)

    def _fork(self, sandbox_id: int, slot: int, opened: list[int], *, check: bool) -> None:
        """Fork a sandbox and tell the worker. Notes in `opened` what is to be closed."""
        one, other = _socket.socketpair()
        ours, theirs = one.detach(), other.detach()
        opened += (ours, theirs)
        out_reader, out_writer = os.pipe()
        opened += (out_reader, out_writer)
        err_reader, err_writer = os.pipe()
        opened += (err_reader, err_writer)
        pid = self._fork_into_namespace()
        if not pid:
            self._become_sandbox(slot, theirs, out_writer, err_writer, check=check)
        self._ids[pid] = sandbox_id, slot
        self._pids[sandbox_id] = pid
        pidfd = os.pidfd_open(pid)
        opened.append(pidfd)
        _send(self._control, b'{"type":"spawned","id":%d}' % sandbox_id, ours, out_reader, err_reader, pidfd)

    def _fork_into_namespace(self) -> int:
        if not self._scratch:
            # The kernel unshares a pid namespace only from the one we are in, so step back into our own each time.
            kernel.setns(self._own_pid_namespace, kernel.CLONE_NEWPID)
            kernel.unshare(kernel.CLONE_NEWPID)
        gc.freeze()  # what we have made since, such as the steps of each slot, no collection of the child's may touch
        return os.fork()

    def _find_hot_pages(self, slot: int) -> None:
        """Have a fork that ends before it could be a guest's tell what it wrote to, and pin that."""
        try:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            pid = self._fork_into_namespace()
        except OSError:
            return  # the next fork fails for the same reason, and says so
        if not pid:
            self._tell_hot_pages(slot, writer)
        os.close(writer)
        told = bytearray()
        while data := os.read(reader, 65536):
            told += data
        os.close(reader)
        os.waitpid(pid, 0)
        hot_pages.pin(bytes(told))

    def _tell_hot_pages(self, slot: int, writer: int) -> NoReturn:
        try:
            observer = hot_pages.Observer(self._proc)
            os.setpgid(0, 0)
            null = os.open("/dev/null", os.O_RDWR)
            os.dup2(null, _CONTROL_FD)
            steps.perform(self._compiled[slot])
            self._run_guest(lambda: _write_and_end(writer, hot_pages.pack(observer.unshared())))
        finally:
            os._exit(1)  # whatever failed will fail in the sandbox, which says so

    def _unspawned(self, sandbox_id: int, error: OSError) -> None:
        if sandbox_id in self._pids:
            self._kill(sandbox_id)  # it exists, but the worker can't be told of it: reaping it will
        else:
            told = {"type": "unspawned", "id": sandbox_id, "reason": f"{error.strerror or error}"}
            self._control.send(json.dumps(told).encode())

    def _become_sandbox(self, slot: int, control: int, out: int, err: int, *, check: bool) -> None:
        """Enclose this freshly forked process, then hand it to the guest's driver. Never returns.

        From here on nothing may return to the zygote's loop, and nothing may be read from its socket.
        """
        try:
            _signal.set_wakeup_fd(-1)
            _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
            # Nobody else's signal to its group reaches us, nor ours them. Not a session: with one comes a group of the
            # scheduler's own (autogroup), which takes longer to make than most of what follows.
            os.setpgid(0, 0)
            # The zygote's descriptors 0 to 3 are taken, so none of these three is among the targets.
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.dup2(control, _CONTROL_FD)
            steps.perform(self._compiled[slot])
            if check:
                _self_test(self._outside, self._plan)
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            kernel.close_range(_CONTROL_FD + 1, 0xFFFFFFFF)
            self._run_guest(gc.enable)  # not before: what the rehearsal leaves is not worth a collection
        except steps.StepFailed as failure:
            frames.write(_CONTROL_FD, frames.encode(_failed(failure)))
        except BaseException as error:  # noqa: BLE001 - a bug of ours must not look like a guest's silence
            bug = steps.StepFailed("the driver", 0, f"{type(error).__name__}: {error}")
            frames.write(_CONTROL_FD, frames.encode(_failed(bug)))
        finally:
            os._exit(70)


def _write_and_end(fd: int, data: bytes) -> NoReturn:
    while data:
        data = data[os.write(fd, data) :]
    os._exit(0)


def _send(control: Socket, packet: bytes, *descriptors: int) -> None:
    packed = b"".join(map(_INT.pack, descriptors))
    control.sendmsg([packet], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)])


def _namespaces(names: Iterable[str]) -> dict[str, str]:
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in names}


def _self_test(outside: dict[str, str], plan: Message) -> None:
    """Ask the kernel what holds of what the plan promises; raises StepFailed for what does not.

    Done in a zygote's sandboxes until one has passed, while only our own code has run in them.
    """
    with open("/proc/self/status") as file:
        status = dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)
    sets = ["CapInh", "CapPrm", "CapEff", "CapAmb"]
    sets += ["CapBnd"] if outside or plan["privilege"] == "root" else []
    missing = [name for name in sets if int(status[name], 16)]
    missing += ["NoNewPrivs"] if status["NoNewPrivs"] != "1" else []
    missing += ["Seccomp"] if status["Seccomp"] != "2" else []
    missing += [f"{name} namespace" for name, link in _namespaces(outside).items() if outside[name] == link]
    missing += ["Landlock"] if plan["landlock"] and not _landlock_holds() else []
    try:
        kernel.unshare(kernel.CLONE_NEWUSER)
        missing.append("the ban on further namespaces")
    except OSError:
        pass
    if missing:
        raise steps.StepFailed("self-test", 0, f"not in force: {', '.join(missing)}")


def _landlock_holds() -> bool:
    # Landlock is asked first, and says EACCES; without it, who lacks capabilities is told EPERM. Not 0:0, a whiteout:
    # to some kernels (6.1.192, 6.12.111) that is a regular file.
    try:
        os.mknod("self-test", _CHARACTER_DEVICE, _NULL_DEVICE)
    except OSError as error:
        return error.errno == _EACCES
    return False


def _failed(failure: steps.StepFailed) -> Message:
    return {"type": "failed", "step": failure.step, "errno": failure.errno, "reason": failure.reason}


def main(control_fd: int) -> None:
    """Be the launcher, and in its child the zygote. Never returns."""
    worker = os.getppid()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, _signal.SIGTERM)
    os.setsid()
    os.dup2(control_fd, _CONTROL_FD)
    kernel.close_range(_CONTROL_FD + 1, 0xFFFFFFFF)
    control = _socket.socket(fileno=_CONTROL_FD)
    # No race with a worker that died before PDEATHSIG was set: its end of the socket is closed then.
    packet = control.recv(_MAX_PACKET)
    if not packet:
        os._exit(0)
    plan = json.loads(packet)
    host_clocks = os.readlink("/proc/self/ns/time") if plan["own_clocks"] else ""
    try:
        steps.perform(steps.compile_steps(plan["launch"], {}))
        if plan["scratch"]:  # from here on there is something to remove: wait for those who handle it
            _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)
        scratch = tree.make_scratch(plan["scratch"]) if plan["scratch"] else ""
        _adopt_if(scratch)
        launcher = os.getpid()
        pid = os.fork()
        if pid:
            control.close()
            _launcher(pid, worker, plan["control_groups"], scratch)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, _signal.SIGTERM if scratch else _signal.SIGKILL)
        _adopt_if(scratch)
        zygote_pid = os.fork()
        if zygote_pid:
            control.close()
            tree.keep(zygote_pid, launcher, scratch) if scratch else _keeper(zygote_pid)
        _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
        _adopt_if(scratch)
        groups = {f"group_{name}": os.open(path, _DIRECTORY) for name, path in plan["control_groups"].items()}
        zygote = Zygote(control, plan, groups, _prepare(plan, scratch), host_clocks=host_clocks, scratch=scratch)
    except steps.StepFailed as failure:
        control.send(json.dumps(_failed(failure)).encode())
        os._exit(1)
    try:
        _send(control, b'{"type":"prepared"}', zygote.pidfd)
        os.close(zygote.pidfd)
        zygote.serve()
    except ConnectionError:
        pass  # the worker closed the socket while something was on its way: the same end
    os._exit(0)  # and with us the keeper, and with it every sandbox


def _keeper(zygote: int) -> None:
    """Reap, as pid 1 of the namespace. Never returns.

    A zygote that ended because it was told to ends everything. One that was killed leaves sandboxes, which must not
    suffer for it: the worker sees to them, and we wait for the last.
    """
    status = 0
    while True:
        try:
            pid, ended_with = os.wait()
        except ChildProcessError:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        if pid == zygote:
            status = ended_with
            if not status:
                os._exit(0)


def _adopt_if(scratch: str) -> None:
    if scratch:
        tree.adopt()


def _launcher(keeper: int, worker: int, group_parents: dict[str, str], scratch: str) -> None:
    """Wait for the keeper's end. Never returns.

    SIGTERM, which the worker sends or its death causes, ends the keeper and with it everything. If the worker is dead,
    remove what it can't remove any more.
    """
    # It may come once the keeper is gone, and must not keep us from what is left to do.
    _signal.signal(_signal.SIGTERM, lambda *_: tree.send(keeper, _signal.SIGKILL))
    if os.getppid() != worker:  # it died before the handler was there
        tree.send(keeper, _signal.SIGKILL)
    _, status = os.waitpid(keeper, 0)
    if scratch:
        tree.end_strays()
        tree.remove(scratch)
    if _is_dead(worker):
        for parent in group_parents.values():
            _remove_groups(parent)
        if "unified" in group_parents:
            _leave_groups(group_parents["unified"])
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _is_dead(worker: int) -> bool:
    """Return whether our parent is dead, having waited for one that is dying.

    The kernel closes a dying process's sockets, which ends the zygote and so the keeper, before it tells the children:
    when the keeper is gone, the worker may still look alive.
    """
    if os.getppid() == worker and not _is_exiting(worker):
        return False
    try:
        dying = os.pidfd_open(worker)
    except ProcessLookupError:
        return True
    if os.getppid() == worker:  # so the number is still its own
        poll = select.poll()
        poll.register(dying, select.POLLIN)
        poll.poll()
    return True


def _is_exiting(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            flags = file.read().rpartition(")")[2].split()[6]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(int(flags) & _PF_EXITING)


def _remove_groups(parent: str) -> None:
    """Remove the control groups of a dead worker. What another of its zygotes still uses stays; that one removes it."""
    try:
        slots = [f"{parent}/{name}" for name in os.listdir(parent) if name.startswith("slot-")]
    except OSError:
        return
    for path in (*slots, parent):
        try:
            os.rmdir(path)
        except OSError:
            continue


def _leave_groups(sandboxes: str) -> None:
    """v2: put back into the dead worker's group all that it moved out of it, us too, so that it can be entered again.

    The kernel refuses while another zygote of it, or another worker, needs the controllers. That one does it later.
    """
    base = os.path.dirname(sandboxes)
    own, leaf = os.path.dirname(base), f"{base}/worker"
    try:
        for path in (base, own):
            _write(f"{path}/cgroup.subtree_control", "-memory -pids -cpu")
        with open(f"{leaf}/cgroup.procs") as file:
            pids = file.read().split()
        for pid in pids:
            try:
                _write(f"{own}/cgroup.procs", pid)
            except ProcessLookupError:  # another launcher that is done
                continue
        os.rmdir(leaf)
        os.rmdir(base)
    except OSError:
        return


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def _prepare(plan: Message, scratch: str) -> Callable[[Callable[[], None]], None]:
    """Enter the root that guests will see, load what they need, make the memory ready to share; return the driver."""
    # Here, not above: the launcher has no use for them.
    from . import preload  # noqa: PLC0415

    if plan["driver"] == "javascript":
        from . import javascript as language  # noqa: PLC0415
    else:
        from . import python as language  # type: ignore[no-redef]  # noqa: PLC0415

    values: dict[str, object] = {"scratch": scratch}
    steps.perform(steps.compile_steps(plan["prepare"], values))
    os.environ.clear()
    kernel.share_malloc_arenas()
    os.environ.update(plan["env"])
    sys.path[:] = [path for path in sys.path if not path.endswith(".zip")]
    if plan["packages_path"]:
        sys.path.append(plan["packages_path"].format_map(values))
    preload.load(plan["preload"])
    steps.perform(steps.compile_steps(plan["settle"], {}))
    language.prepare()
    sys.argv = [language.FILENAME]
    sys.path.insert(0, plan["workdir"])  # as for any program: the files beside it can be imported
    # A guest that imports `enclave_worker` or `steps` gets its own file of that name, or an ImportError.
    for name in [name for name in sys.modules if name.partition(".")[0] == "enclave_worker"]:
        del sys.modules[name]
    gc.collect()
    gc.disable()
    preload.require_one_thread()
    gc.freeze()  # the collector must not touch, and so copy, the pages that sandboxes share
    return language.main
