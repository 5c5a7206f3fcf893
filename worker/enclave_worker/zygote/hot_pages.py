"""Pages that every sandbox writes to: copied by the fork, all at once, and not by a fault each.

Theory of operation. A fork shares memory until somebody writes to it. A fault then copies that page, which takes some
2 µs, and in Python everything that is looked at is written to, because its references are counted. So each sandbox
copied the same few hundred pages one after the other, and the zygote, whose memory a fork write-protects too, a hundred
more: half of what a sandbox cost.

A page that is pinned, as for a device that reads and writes it by itself, must not move. So a fork copies it for the
child at once, and leaves the parent's as it is (`copy_present_page` in the kernel's mm/memory.c, since 5.12). To
register memory as the fixed buffers of an io_uring pins it. Nothing is ever asked of that ring. It belongs to the
zygote; a sandbox inherits its descriptor and closes it, as all others, before there is any code of a guest's, to whom
the filter refuses io_uring altogether.

Which pages these are, the first fork finds out: it becomes a sandbox up to the rehearsal, asks the kernel which pages
it does not share any more (of those that it wrote to it has a copy, of those that the zygote wrote to the original),
tells the zygote, and ends. No guest's code ever runs in it. What the zygote alone writes to is not among them: to have
it copied for each sandbox takes more memory than it saves the zygote time.

Where the kernel has no io_uring or forbids it, or the limit of locked memory (RLIMIT_MEMLOCK, for an ordinary user) is
too low, forks share as ever: slower, and in nothing else different.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself is too large for a zygote
    Range = tuple[int, int]

_NR_IO_URING_SETUP = 425
_NR_IO_URING_REGISTER = 427
_IORING_REGISTER_BUFFERS = 0
_SIZE_OF_PARAMETERS = 120
_MAX_RANGES = 1 << 14
_TOLD_WITHIN_MS = 3000
_RANGE = struct.Struct("QQ")
"""An address and a size in bytes, as in a `struct iovec`."""
_ENTRY = struct.Struct("Q")
_ALONE = 1 << 63 | 1 << 56
"""Documentation/admin-guide/mm/pagemap.rst: "page present", "page exclusively mapped"."""
_FILE_OR_SHARED = 1 << 61
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def writable(proc_fd: int) -> list[Range]:
    """Return the address and size in bytes of each area of memory that this process may write to and shares with none.

    Its forks have the same, and need not make what it takes to find out.
    """
    maps = os.open("self/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    with open(maps, "rb") as file:
        lines = [line.split(None, 2) for line in file.read().splitlines()]
    bounds = [line[0].split(b"-") for line in lines if line[1] == b"rw-p"]
    return [(int(start, 16), int(end, 16) - int(start, 16)) for start, end in bounds]


class Observer:
    """Finds out what a process no longer shares with the one it was forked from.

    Made right after the fork, while the process may still open the file that shows its memory.

    Args:
        proc_fd: a directory with the processes.
        areas: where to look: what `writable` returned before the fork.
    """

    def __init__(self, proc_fd: int, areas: list[Range]) -> None:
        self._pagemap = os.open("self/pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
        self._reads = [
            (start, size // _PAGE_BYTES * _ENTRY.size, start // _PAGE_BYTES * _ENTRY.size) for start, size in areas
        ]

    def unshared(self) -> list[Range]:
        """Return the address and size in bytes of each row of such pages."""
        # All of it before any of it is looked at: to look takes memory.
        seen = [(start, os.pread(self._pagemap, size, offset)) for start, size, offset in self._reads]
        return [row for start, entries in seen for row in _rows(start, entries)]


def _rows(start: int, entries: bytes) -> list[Range]:
    """Return the rows of pages that only this process maps; `entries` are the pagemap's, of the pages from `start`."""
    rows: list[Range] = []
    address = start
    for (entry,) in _ENTRY.iter_unpack(entries):
        if entry & _ALONE == _ALONE and not entry & _FILE_OR_SHARED:
            if rows and sum(rows[-1]) == address:
                rows[-1] = rows[-1][0], rows[-1][1] + _PAGE_BYTES
            else:
                rows.append((address, _PAGE_BYTES))
        address += _PAGE_BYTES
    return rows


def pack(ranges: list[Range]) -> bytes:
    """Return ranges in the form that `pin` takes."""
    return b"".join(_RANGE.pack(address, size) for address, size in ranges[:_MAX_RANGES])


def tell(fd: int, ranges: list[Range]) -> None:
    """Write down ranges for another process to `hear`."""
    packed = pack(ranges)
    while packed:
        packed = packed[os.write(fd, packed) :]


def hear(fd: int) -> bytes:
    """Return what a process tells, for `pin`, once it has ended; nothing if that takes too long."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    told = bytearray()
    while poll.poll(_TOLD_WITHIN_MS):
        data = os.read(fd, 65536)
        if not data:
            return bytes(told)
        told += data
    return b""


def pin(packed: bytes) -> None:
    """Have every fork from now on copy these pages at once, as long as this process lives; raises OSError."""
    parameters, vectors = ctypes.create_string_buffer(_SIZE_OF_PARAMETERS), ctypes.create_string_buffer(packed)
    ring = kernel.call(_NR_IO_URING_SETUP, 1, parameters)
    try:
        kernel.call(_NR_IO_URING_REGISTER, ring, _IORING_REGISTER_BUFFERS, vectors, len(packed) // _RANGE.size)
    except OSError:
        os.close(ring)
        raise
