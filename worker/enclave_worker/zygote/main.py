"""The zygote: a prepared process that sandboxes are forked from.

Theory of operation. Five roles, each the parent of the next:

    worker ──exec──▶ launcher ──fork──▶ keeper ──fork──▶ zygote ──fork──▶ sandbox, sandbox, …

The worker execs the launcher with nothing of its own environment and one descriptor, a SEQPACKET socket, over which
the first message is the plan. The launcher enters a new pid namespace (and, for an ordinary user, a user namespace) by
forking the keeper into it as pid 1, and then only waits for it. The keeper forks the zygote and only reaps. The zygote
imports what guests need, builds and enters the root they will see, and from then on serves two requests: `spawn` and
`kill`. It has one thread and holds no secret.

Each sandbox is pid 1 of a pid namespace of its own, below the keeper's. So the kernel ends a sandbox's whole tree with
its first process, and every sandbox with the keeper: nothing depends on a list of processes, and a guest can't opt
out. The zygote ends when its socket does, which is when the worker lets go of it or is gone, however it went, and the
keeper with it; the launcher's death signal backs that up. A zygote that dies in any other way takes nobody along: its
sandboxes become the keeper's, which stays for the last of them.

On a host without namespaces, where the plan names a `scratch` directory, none of this comes from the kernel: `tree`
does it instead, and a sandbox's number is any.

The socket carries one message a packet. To the zygote: the plan in JSON, then `requests`. From it, in JSON:
`prepared` with two pidfds, the zygote's and that of the process whose end is that of all sandboxes (the keeper; with
`tree`, the zygote again); `spawned` with four descriptors (control socket, stdout, stderr, a pidfd), which only the
worker holds from then on; `unspawned` with the reason, if there was no process to be had;
`exited` with the wait status and the kernel's count of CPU time and memory;
and `failed` with the name of the step and the errno, before it exits. A sandbox that fails a step says so on its own
control socket.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed has no stub; `signal` wraps each call in enums, which a fork then copies
import _socket  # `socket` is the same in a wrapper of Python and enums
import gc
import json
import os
import sys

from . import kernel, steps, tree
from .driver import CONTROL_FD
from .forking import Zygote, failed, send
from .launcher import keeper, launcher

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself is too large for a zygote
    from .driver import Language
    from .frames import Message

_MAX_PACKET = 1 << 18
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def main(control_fd: int) -> None:
    """Be the launcher, and in its child the zygote. Never returns."""
    worker = os.getppid()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, _signal.SIGTERM)
    os.setsid()
    os.dup2(control_fd, CONTROL_FD)
    kernel.close_range(CONTROL_FD + 1, 0xFFFFFFFF)
    control = _socket.socket(fileno=CONTROL_FD)
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
        launcher_pid = os.getpid()
        pid = os.fork()
        if pid:
            control.close()
            launcher(pid, worker, plan["control_groups"], scratch)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, _signal.SIGTERM if scratch else _signal.SIGKILL)
        _adopt_if(scratch)
        zygote_pid = os.fork()
        if zygote_pid:
            control.close()
            tree.keep(zygote_pid, launcher_pid, scratch) if scratch else keeper(zygote_pid)
        _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
        _adopt_if(scratch)
        groups = {f"group_{name}": os.open(path, _DIRECTORY) for name, path in plan["control_groups"].items()}
        zygote = Zygote(control, plan, groups, _prepare(plan, scratch), host_clocks=host_clocks, scratch=scratch)
    except steps.StepFailed as failure:
        control.send(json.dumps(failed(failure)).encode())
        os._exit(1)
    try:
        _tell_prepared(control, scratch)
        zygote.serve()
    except ConnectionError:
        pass  # the worker closed the socket while something was on its way: the same end
    os._exit(0)  # and with us the keeper, and with it every sandbox


def _tell_prepared(control: _socket.socket, scratch: str) -> None:
    """Give the worker a hold on us, and on the process with which all sandboxes end."""
    last = os.getpid() if scratch else os.getppid()
    pidfds = os.pidfd_open(os.getpid()), os.pidfd_open(last)
    send(control, b'{"type":"prepared"}', *pidfds)
    for pidfd in pidfds:
        os.close(pidfd)


def _adopt_if(scratch: str) -> None:
    if scratch:
        tree.adopt()


def _prepare(plan: Message, scratch: str) -> Language:
    """Enter the root that guests will see, load what they need, make the memory ready to share."""
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
    return language
