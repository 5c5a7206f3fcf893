"""The zygote's parent and its parent: who waits for whom, and who clears away what. See `main`.

By the time they run they have nothing to do but to wait, and no privilege that they need.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # see `main`
import os
import select

from . import tree

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself is too large for a zygote
    from typing import NoReturn

_PF_EXITING = 0x4  # include/linux/sched.h: "Getting shut down"


def keeper(zygote: int) -> NoReturn:
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


def launcher(keeper: int, worker: int, group_parents: dict[str, str], scratch: str) -> NoReturn:
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
