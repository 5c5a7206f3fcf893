"""Runs a command as another user, with directories made reachable that only root can reach.

    python as_user.py UID '["/needed/directory", ...]' COMMAND...

A program of its own, because a process can't leave a mount namespace behind for its parent's sake.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_OTHERS_MAY_ENTER = 0o001

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    result = _libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
    _check(result, f"mount {target}")


def _barrier(path: Path) -> Path | None:
    """Return the outermost directory above `path` that others may not enter."""
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & _OTHERS_MAY_ENTER:
            return parent
    return None


def _open_up(needed: list[str]) -> None:
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    paths = sorted({Path(path).resolve() for path in needed})
    # A directory inside another comes with it.
    paths = [path for path in paths if not any(other in path.parents for other in paths)]
    held = {path: os.open(path, os.O_PATH) for path in paths if _barrier(path) is not None}
    for barrier in {_barrier(path) for path in held} - {None}:
        _mount("tmpfs", str(barrier), "tmpfs", 0, "mode=755")
    for path, fd in held.items():
        path.mkdir(parents=True, exist_ok=True)
        _mount(f"/proc/self/fd/{fd}", str(path), None, _MS_BIND | _MS_REC)
        os.close(fd)


def main() -> None:
    """Be the program."""
    uid, needed, command = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
    _open_up(needed)
    os.chdir("/")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.execve(command[0], command, {**os.environ, "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"})


if __name__ == "__main__":
    main()
