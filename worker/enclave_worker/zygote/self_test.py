"""What the first sandboxes of a zygote ask the kernel, before they know what they will run."""

from __future__ import annotations

import os

from . import kernel, steps

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself is too large for a zygote
    from collections.abc import Iterable

    from .frames import Message

_CHARACTER_DEVICE = 0o020000
_NULL_DEVICE = 0x103
_EACCES = 13
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")


def namespaces(names: Iterable[str] = NAMESPACES) -> dict[str, str]:
    """Return, by kind, the names of the namespaces that this process is in."""
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in names}


def self_test(outside: dict[str, str], plan: Message) -> None:
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
    missing += [f"{name} namespace" for name, link in namespaces(outside).items() if outside[name] == link]
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
