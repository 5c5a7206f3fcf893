"""Where our own control group is, from what the kernel says in two files. Pure.

A host mounts control groups in one of two ways: *v2*, one tree with all controllers, or *v1*, a tree per controller. A
host may mount both and spread the controllers over them; v2 is used if it has all that are needed, else v1 if that has.
Our part of the tree need not begin at the mount's root: inside a container the mount may show a part of the host's.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTROLLERS = {1: ("memory", "pids", "cpu", "cpuacct"), 2: ("memory", "pids", "cpu")}
"""What is needed of each version. In v2 `cpu` counts as well as limits."""

DELEGATE = "start it in a group of its own: systemd-run --user --scope -p Delegate=yes enclave-runtime …"
PREFIX = "enclave-"
"""Begins the name of each worker's directory."""
WORKER_LEAF = "worker"
"""v2: the group in it that the worker itself is in."""
WRITABLE = "give the worker control groups that it may write (docs/operations.md: containers), or start it as root"


class ControlGroupsMissing(Exception):  # noqa: N818 - a fact about the host
    """This host gives us no control groups. `fix` says what would."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Our own control group: for each controller the directory it is in (v2: one and the same)."""

    version: Literal[1, 2]
    directories: dict[str, str]
    at_root: bool = False
    """v2: whether this is a container's root, so that every process in it is the container's own. Not the host's root:
    that one may have processes and hand controllers down."""


class _Mount(NamedTuple):
    kind: str
    root: str
    path: str
    options: tuple[str, ...]


def find_layout(own: str, mounts: str, read: Callable[[str], str]) -> Layout:
    """Find our control groups.

    Args:
        own: the text of `/proc/self/cgroup`.
        mounts: the text of `/proc/self/mountinfo`.
        read: reads a file by its path; raises OSError.

    Raises:
        ControlGroupsMissing: some controller is nowhere to be found.
    """
    paths = dict(_own_paths(own))
    found = list(_mounts(mounts))
    unified = next((mount for mount in found if mount.kind == "cgroup2"), None)
    lacking_2 = set(CONTROLLERS[2])
    if unified is not None and "" in paths and (directory := _below(unified, _outside_of_workers(paths[""]))):
        lacking_2 -= set(_words(read, f"{directory}/cgroup.controllers"))
        if not lacking_2:
            at_root = directory == unified.path and bool(
                _words(read, f"{directory}/cgroup.type")
            )  # the host's has none
            return Layout(version=2, directories=dict.fromkeys(CONTROLLERS[2], directory), at_root=at_root)
    directories = dict(_v1_directories(paths, found))
    lacking_1 = [name for name in CONTROLLERS[1] if name not in directories]
    if not lacking_1:
        return Layout(version=1, directories=directories)
    if unified is not None and len(lacking_2) < len(CONTROLLERS[2]):
        raise ControlGroupsMissing(f"our control group lacks: {', '.join(sorted(lacking_2))}", DELEGATE)
    raise ControlGroupsMissing(f"no control groups with {', '.join(lacking_1)} are mounted", WRITABLE)


def _own_paths(text: str) -> Iterator[tuple[str, str]]:
    """Yield (controller, path) from lines like `4:cpu,cpuacct:/a/b`; v2's line has no controller."""
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            yield name, path


def _mounts(text: str) -> Iterator[_Mount]:
    # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        fields, (kind, _, options) = head.split(), tail.split(" ", 2)
        if kind in {"cgroup", "cgroup2"}:
            yield _Mount(kind, _unescape(fields[3]), _unescape(fields[4]), tuple(options.split(",")))


def _outside_of_workers(path: str) -> str:
    """Return where a worker starts from, given our path: what another moved into its leaf, or started, is in there."""
    place = PurePosixPath(path)
    while place.name == WORKER_LEAF and place.parent.name.startswith(PREFIX):
        place = place.parent.parent
    return str(place)


def _v1_directories(paths: dict[str, str], mounts: list[_Mount]) -> Iterator[tuple[str, str]]:
    for name in CONTROLLERS[1]:
        for mount in mounts:
            if mount.kind == "cgroup" and name in mount.options and name in paths:
                directory = _below(mount, paths[name])
                if directory:
                    yield name, directory
                    break


def _below(mount: _Mount, path: str) -> str | None:
    """Return where `path` of the hierarchy appears below the mount; None if it lies outside of what is mounted."""
    if not PurePosixPath(path).is_relative_to(mount.root):
        return None
    return str(PurePosixPath(mount.path) / PurePosixPath(path).relative_to(mount.root))


def _words(read: Callable[[str], str], path: str) -> list[str]:
    try:
        return read(path).split()
    except OSError:
        return []


def _unescape(text: str) -> str:
    r"""Undo mountinfo's octal escapes, such as `\040` for a space."""
    return text.encode().decode("unicode_escape") if "\\" in text else text
