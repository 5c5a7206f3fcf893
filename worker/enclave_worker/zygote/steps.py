"""Performs the steps that `sandbox.plan` listed.

A step is `[name, operation, *arguments]`, plain JSON. Its name is what `docs/sandbox.md` lists and what a failure
reports. The list is the whole description: nothing here knows what a sandbox looks like.
"""

from __future__ import annotations

import os
import resource
import time

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself is too large for a zygote
    from collections.abc import Callable
    from typing import Any

    Compiled = tuple[str, Callable[..., object], tuple[object, ...]]


_CLOCKS = (("monotonic", time.CLOCK_MONOTONIC), ("boottime", time.CLOCK_BOOTTIME))


class StepFailed(Exception):  # noqa: N818 - said in the past tense everywhere
    """A step failed: `step` is its name, `errno` the kernel's number (0 if there is none)."""

    def __init__(self, step: str, errno: int, reason: str) -> None:
        super().__init__(f"{step}: {reason}")
        self.step = step
        self.errno = errno
        self.reason = reason


def _write(path: bytes, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def _write_at(directory_fd: int, path: bytes, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def _file(path: bytes, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def _directory(path: bytes) -> None:
    os.makedirs(path, mode=0o755, exist_ok=True)


def _own_directory(path: bytes, uid: int) -> None:
    os.mkdir(path, 0o700)
    if uid:
        os.chown(path, uid, uid)
    os.chdir(path)


def _lowered(number: int, soft: int, hard: int) -> tuple[int, tuple[int, int]]:
    """Return the arguments of `setrlimit` for limits that are no higher than the present one."""
    # A hard limit that is already lower stays: only CAP_SYS_RESOURCE could raise it, and lower is stricter.
    _, current = resource.getrlimit(number)
    if current != resource.RLIM_INFINITY:
        soft, hard = min(soft, current), min(hard, current)
    return number, (soft, hard)


def _join(group_parent: int, slot: str, file: bytes) -> None:
    """Enter the control group of a slot; what this process causes from here on is charged to it."""
    _write_at(group_parent, slot.encode() + b"/" + file, b"0")


def _identity(uid: int) -> None:
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _clocks_from_zero() -> None:
    # Of the namespace that our next child starts in. Whole seconds: the kernel refuses a clock that would be negative.
    offsets = [f"{name} -{int(time.clock_gettime(clock))} 0\n" for name, clock in _CLOCKS]
    _write(b"/proc/self/timens_offsets", "".join(offsets).encode())


OPERATIONS: dict[str, Callable[..., object]] = {
    "capabilities": kernel.set_capabilities,
    "bounding_set": kernel.drop_bounding_set,
    "chdir": os.chdir,
    "clocks_from_zero": _clocks_from_zero,
    "directory": _directory,
    "environment": os.environb.__setitem__,
    "file": _file,
    "hostname": kernel.sethostname,
    "identity": _identity,
    "join": _join,
    "keyring": kernel.join_new_session_keyring,
    "landlock": kernel.landlock,
    "loopback": kernel.raise_loopback,
    "mount": kernel.mount,
    "mount_attributes": kernel.mount_attributes,
    "no_groups": lambda: os.setgroups([]),
    "own_directory": _own_directory,
    "pivot": kernel.pivot_here,
    "prctl": kernel.prctl,
    "rlimit": resource.setrlimit,
    "seccomp": kernel.load_seccomp,
    "symlink": os.symlink,
    "umask": os.umask,
    "unmount": kernel.unmount,
    "unshare": kernel.unshare,
    "write": _write,
    "write_at": _write_at,
}

PREPARATIONS: dict[str, Callable[..., tuple[object, ...]]] = {
    "capabilities": kernel.capability_sets,
    "rlimit": _lowered,
    "seccomp": kernel.filter_program,
}
"""What makes an operation's arguments of a step's. What is allocated before the fork, no sandbox has to."""


def compile_steps(steps: list[list[Any]], values: dict[str, object]) -> list[Compiled]:
    """Turn listed steps into `(name, function, arguments)`, with strings as bytes and `{name}`s filled in.

    `values` maps the names a step may refer to (`uid`, ...) to their values. Done before the fork, so that the child
    only calls.
    """
    return [_compile(step, values) for step in steps]


class SlotSteps:
    """Compiled steps of one slot after the other, in one list.

    What is the same for all slots is made once. The rest takes the place of the last slot's: what a zygote kept for
    each would be more memory to copy with each fork, and would push what it allocates from hot pages to others.

    Args:
        steps: the steps, as listed.
        values: of the names that mean the same for every slot.
        own: the names that do not; `fill` gets their values.
    """

    def __init__(self, steps: list[list[Any]], values: dict[str, object], own: tuple[str, ...]) -> None:
        self.compiled: list[Compiled] = []
        self._values = dict(values)
        self._own: list[tuple[int, list[Any]]] = []
        for number, step in enumerate(steps):
            known = [argument if _refers(argument, own) else _fill(argument, values) for argument in step[2:]]
            if any(_refers(argument, own) for argument in known):
                self._own.append((number, [*step[:2], *known]))
                self.compiled.append((step[0], OPERATIONS[step[1]], ()))
            else:
                self.compiled.append(_compile(step, values))

    def fill(self, **own: object) -> None:
        """Make `compiled` the steps of the slot that these values are of."""
        self._values.update(own)
        for number, step in self._own:
            self.compiled[number] = _compile(step, self._values)


def _refers(argument: object, names: tuple[str, ...]) -> bool:
    return isinstance(argument, str) and any(f"{{{name}}}" in argument for name in names)


def _compile(step: list[Any], values: dict[str, object]) -> Compiled:
    name, operation, *listed = step
    arguments = tuple([_fill(argument, values) for argument in listed])
    prepare = PREPARATIONS.get(operation)
    return name, OPERATIONS[operation], prepare(*arguments) if prepare else arguments


def _fill(argument: object, values: dict[str, object]) -> object:
    if not isinstance(argument, str):
        return argument
    if argument.startswith("{") and argument[1:-1] in values:
        return values[argument[1:-1]]  # alone, it keeps its type
    return argument.format_map(values).encode() if "{" in argument else argument.encode()


def perform(compiled: list[Compiled]) -> None:
    """Perform compiled steps in order; raises StepFailed at the first that fails."""
    for name, function, arguments in compiled:
        try:
            function(*arguments)
        except OSError as error:
            raise StepFailed(name, error.errno or 0, error.strerror or str(error)) from None
        except ValueError as error:
            raise StepFailed(name, 0, str(error)) from None
