# The guest's side of every case: put before its code. HOST, which the runner sets, tells where the host's canaries are
# (never what is in them). An attempt is reported by one line; `refused` makes most of them.
import ctypes
import errno
import os
import sys
import time

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl(15, HOST["tag"].encode(), 0, 0, 0)  # PR_SET_NAME: survivors are looked for by it
_write = os.write


def _tell(line, fd=1):
    _write(fd, (line.replace("\n", " ")[:300] + "\n").encode(errors="backslashreplace"))


def held(name, how="", fd=1):
    """The attempt was made and came to nothing; `how` it was refused."""
    _tell(f"HELD {name}: {how}", fd)


def breach(name, what, fd=1):
    """The attempt succeeded."""
    _tell(f"BREACH {name}: {what}", fd)


def refused(name, action, *allowed):
    """Make an attempt. Only an OSError refuses it, and only with one of the errnos `allowed`, if any are given."""
    try:
        got = action()
    except OSError as error:
        how = errno.errorcode.get(error.errno, str(error))
        if allowed and how not in allowed:
            breach(name, f"{how}, where one of {allowed} was expected: another layer refused it, or none")
        else:
            held(name, how)
    else:
        breach(name, f"it worked: {got!r}")


def call(name, *arguments):
    """Make a system call by name; raises OSError. Numbers, bytes and ctypes buffers are arguments."""
    if name not in HOST["numbers"]:
        raise OSError(errno.ENOSYS, f"no {name} on this machine")
    ctypes.set_errno(0)
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in (HOST["numbers"][name], *arguments)]
    result = _libc.syscall(*values)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def in_child(action):
    """Run `action` in a forked child, which then ends with 0; return its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]


def stops(name, make, bound, *allowed):
    """Do `make` over and over: it must be refused before it was done `bound` times. Returns what was made."""
    made = []
    try:
        while len(made) < bound:
            made.append(make())
    except (OSError, MemoryError, RuntimeError) as error:
        how = errno.errorcode.get(getattr(error, "errno", 0) or 0, type(error).__name__)
        if allowed and how not in allowed:
            breach(name, f"{how} after {len(made)}, where one of {allowed} was expected")
        else:
            held(name, f"{how} after {len(made)}")
    else:
        breach(name, f"done {bound} times and never refused")
    return made


def own_text(path):
    """What a file holds, or nothing."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


FILTERED = ("EPERM", "ENOSYS")  # how the system call filter refuses
