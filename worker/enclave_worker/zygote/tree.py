"""Ending process trees and directories by hand, for hosts without namespaces: see `enclave_worker.sandbox.open_plan`.

Theory of operation. A process whose parent dies falls to its nearest living ancestor that is a subreaper. A sandbox's
first process is one, so nothing that it starts gets away while it lives, and is one that no filtered process can cease
to be. When it dies, what it leaves falls to the zygote, whose only other children are sandboxes; so whatever is not
one of those is to end. The keeper stands in the same way behind the zygote, and the launcher behind the keeper.

Killed one by one, processes that fork faster than they are killed would win. So all that descends from the left
over is stopped first, level by level, until nothing is found that was not; a stopped process makes no other.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # as in `main`
import os

from . import kernel, steps

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself is too large for a zygote
    from collections.abc import Container

_OURS = 0o700
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def adopt() -> None:
    """Have orphans among the descendants of this process fall to it."""
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)


def end_strays(live: Container[int] = ()) -> None:
    """End and reap every child of this process that is not in `live`, and all that descends from it.

    Returns when none is left.
    """
    while strays := [pid for pid in _children(os.getpid()) if pid not in live]:
        for pid in _stop(strays):
            send(pid, _signal.SIGKILL)
        for pid in strays:
            os.waitpid(pid, 0)


def _stop(roots: list[int]) -> list[int]:
    """Stop processes and their descendants until no more are found; return them, parents before their children."""
    stopped: dict[int, None] = {}
    grew = True
    while grew:
        before = len(stopped)
        todo = roots[:]
        while todo:
            pid = todo.pop()
            if pid not in stopped:
                send(pid, _signal.SIGSTOP)
                stopped[pid] = None
            todo += _children(pid)
        grew = len(stopped) > before
    return list(stopped)


def send(pid: int, number: int) -> None:
    """Send a signal to a process, if there is one."""
    try:  # noqa: SIM105 - contextlib is too large for a zygote
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += map(int, file.read().split())
    except (FileNotFoundError, ProcessLookupError):  # it ended
        pass
    return found


def keep(zygote: int, launcher: int, scratch: str) -> None:
    """Be the keeper. Never returns.

    Unlike the first process of a namespace it can't end everything by ending, so it must not be killed by the
    launcher's death, but told. With the zygote, however that went, all sandboxes end.
    """
    _signal.signal(_signal.SIGTERM, lambda *_: send(zygote, _signal.SIGKILL))
    kernel.prctl(kernel.PR_SET_PDEATHSIG, _signal.SIGTERM)
    if os.getppid() != launcher:
        send(zygote, _signal.SIGKILL)
    _, status = os.waitpid(zygote, 0)
    end_strays()
    if os.getppid() != launcher:
        remove(scratch)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def make_scratch(parent: str) -> str:
    """Make a directory below `parent` for those of a zygote's sandboxes and return its path; raises StepFailed."""
    path = f"{parent}/enclave-{os.getpid()}-{os.urandom(8).hex()}"
    try:
        os.mkdir(path, 0o700)
        os.chmod(path, 0o711)  # noqa: S103 - sandboxes may be other users; each has a directory that only it can enter
    except OSError as error:
        raise steps.StepFailed(f"directory {path}", error.errno or 0, error.strerror or "") from None
    return path


def remove(path: str) -> None:
    """Remove a directory with all that is in it, if it is there.

    Nothing is followed, nothing recurses, and what a guest made unreadable or very deep goes like the rest: each
    directory is moved beside the one it was found in.
    """
    parent, _, name = path.rpartition("/")
    beside = os.open(parent, _DIRECTORY)
    try:
        todo, moved = [name], 0
        while todo:
            name = todo.pop()
            try:
                os.chmod(name, _OURS, dir_fd=beside)
                fd = os.open(name, _DIRECTORY, dir_fd=beside)
            except FileNotFoundError:
                continue
            try:
                for entry in list(os.scandir(fd)):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.name, dir_fd=fd)
                        continue
                    moved += 1
                    os.chmod(entry.name, _OURS, dir_fd=fd)  # moving it takes writing to it
                    todo.append(f".{os.getpid()}-{moved}")
                    os.rename(entry.name, todo[-1], src_dir_fd=fd, dst_dir_fd=beside)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=beside)
    finally:
        os.close(beside)
