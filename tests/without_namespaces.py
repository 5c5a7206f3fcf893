"""Runs a command on a host without user namespaces, which leaves an ordinary user no namespaces at all.

    python without_namespaces.py COMMAND...

The command runs in a user namespace that has the same users as this one and allows no other: root stays root there.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_CLONE_NEWUSER = 0x10000000


def _map(pid: int, uid: int, gid: int) -> None:
    """Give a process's new user namespace our users: all if we are root, else the one we are."""
    everyone = "0 0 4294967295"
    Path(f"/proc/{pid}/uid_map").write_text(everyone if uid == 0 else f"{uid} {uid} 1")
    if uid:
        Path(f"/proc/{pid}/setgroups").write_text("deny")
    Path(f"/proc/{pid}/gid_map").write_text(everyone if uid == 0 else f"{gid} {gid} 1")


def main() -> None:
    """Be the program."""
    uid, gid, pid = os.geteuid(), os.getegid(), os.getpid()
    reader, writer = os.pipe()
    mapper = os.fork()  # before: only somebody outside may map more than one user
    if not mapper:
        os.close(writer)
        os.read(reader, 1)
        _map(pid, uid, gid)
        os._exit(0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) < 0:
        raise OSError(ctypes.get_errno(), "unshare")
    os.write(writer, b"1")
    _, status = os.waitpid(mapper, 0)
    assert status == 0, "the users could not be mapped"
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
