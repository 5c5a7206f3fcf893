"""What a worker asks of its zygote, one packet each, of one form: to unpack it touches next to no memory.

What a zygote writes to, it first has to copy, once for every sandbox that it forks: a page costs both some 2 µs.
"""

from __future__ import annotations

import struct

SPAWN, KILL = 1, 2

_FORM = struct.Struct("=BQIIB")


def spawn(sandbox_id: int, slot: int, uid: int, *, check: bool) -> bytes:
    """Ask for a sandbox.

    Args:
        sandbox_id: what it is called from here on.
        slot: the number of its slot, from which its control groups and directories have their names.
        uid: the host user that it runs as.
        check: whether it has to pass the self-test.
    """
    return _FORM.pack(SPAWN, sandbox_id, slot, uid, check)


def kill(sandbox_id: int) -> bytes:
    """Ask for the end of a sandbox."""
    return _FORM.pack(KILL, sandbox_id, 0, 0, 0)


unpack = _FORM.unpack
"""Return `(SPAWN or KILL, sandbox_id, slot, uid, check)`."""
