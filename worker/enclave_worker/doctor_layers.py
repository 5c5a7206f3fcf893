"""Try what a worker tries at its start, with the worker's own code, and print what came of it as JSON.

Called as `python -P -m enclave_worker.doctor_layers NAME`; the output is that of `doctor_probes`, with a `fix`. A
process of its own, because with control groups of version 2 a worker moves itself.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .cgroups import CONTROLLERS, ControlGroups, ControlGroupsMissing, GroupLimits, Layout, find_layout
from .cgroups.layout import DELEGATE, WRITABLE
from .config import RuntimeConfig
from .doctor_needs import Answer
from .profiles import load_profiles
from .provision import places_needed
from .sandbox.levels import DEFAULT_LEVEL, LEVELS
from .user_ids import describe, has_room, id_ranges, suggest_first
from .zygote import hot_pages
from .zygote.kernel import acts_as_root

if TYPE_CHECKING:
    from collections.abc import Callable


_PINNED_BYTES = 7 << 20
"""What the three zygotes of the `python` profile pin, and a fourth while it takes the place of one of them. An ordinary
user's limit is for all that the user's programs have pinned."""


def layout() -> Layout:
    """Return where our control group is; raises ControlGroupsMissing."""
    own, mounts = (Path(f"/proc/self/{name}").read_text() for name in ("cgroup", "mountinfo"))
    return find_layout(own, mounts, lambda path: Path(path).read_text())


def controller(name: str) -> Callable[[], Answer]:
    """Return a probe that makes a group below ours in one controller's tree."""

    def probe() -> Answer:
        ours = layout()
        if name not in ours.directories:
            return Answer(ok=True, found=f"v{ours.version} has it in cpu")
        directory = ours.directories[name]
        made = Path(directory, f"doctor-{os.getpid()}")
        try:
            made.mkdir()
            made.rmdir()
        except OSError as error:
            fix = DELEGATE if ours.version == 2 and not ours.at_root else WRITABLE
            raise ControlGroupsMissing(f"v{ours.version}, {directory}: {error.strerror}", fix) from error
        return Answer(ok=True, found=f"v{ours.version}, writable: {directory}")

    return probe


def control_groups() -> Answer:
    """A worker's directories, and a sandbox's with all its limits."""
    groups = ControlGroups.open()
    try:
        resources = LEVELS[DEFAULT_LEVEL].resources
        limits = GroupLimits(
            memory_bytes=resources.memory_limit_bytes, processes=resources.processes, cpus=resources.cpus
        )
        groups.group(0, limits)
    except OSError as error:
        reason = f"limits cannot be set: {error.strerror}: {error.filename}"
        raise ControlGroupsMissing(reason, DELEGATE if groups.version == 2 else WRITABLE) from error
    finally:
        groups.close()
    return Answer(ok=True, found=f"v{groups.version}, limits can be set")


def user_ids() -> Answer:
    """Whether a worker that is started as root finds one for each sandbox."""
    if not acts_as_root():
        return Answer(ok=True, found="none: all sandboxes share this user")
    return judge_ids(Path("/proc/self/uid_map").read_text(), _wanted_uid(), _needed_ids())


def usable_first_uid() -> int:
    """Return the first id that a worker's sandboxes can have here; the default's if there is none."""
    return next((int(value) for value in user_ids().options[1:]), _wanted_uid())


def _wanted_uid() -> int:
    return int(os.environ.get("ENCLAVE_FIRST_UID") or RuntimeConfig().first_uid)


def _needed_ids() -> int:
    config = RuntimeConfig()
    return places_needed(config, load_profiles(config.profiles, config.profiles_file).values())


def judge_ids(uid_map: str, first: int, count: int) -> Answer:
    """Say whether so many ids from `first` on are there, and if not, which others would do. Pure."""
    ranges = id_ranges(uid_map)
    if has_room(ranges, first, count):
        return Answer(ok=True, found=f"{first}-{first + count - 1}, one for each sandbox")
    found = f"of {describe(ranges)} here, not {first}-{first + count - 1}"
    other = suggest_first(ranges, count)
    if other is None:
        return Answer(ok=False, found=found)
    return Answer(ok=True, found=f"{found}, but from {other} on", options=("--first-uid", str(other)))


def pinned_memory() -> Answer:
    """Whether a fork has for itself what was pinned, and what neither wrote to; as much of it as zygotes pin."""
    with mmap.mmap(-1, _PINNED_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area.madvise(mmap.MADV_NOHUGEPAGE)
        area[:] = b"x" * _PINNED_BYTES
        whole = ctypes.addressof(ctypes.c_char.from_buffer(area)), _PINNED_BYTES
        hot_pages.pin(hot_pages.pack([whole]))
        proc = os.open("/proc", os.O_PATH)
        pid = os.fork()
        if not pid:
            try:
                own = hot_pages.Observer(proc, [whole]).unshared()
                os._exit(0 if own == [whole] else 1)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
    copied = status == 0
    return Answer(ok=copied, found="a fork copies it at once" if copied else "a fork shares it all the same")


PROBES: dict[str, Callable[[], Answer]] = {
    **{f"controller_{name}": controller(name) for name in CONTROLLERS[1]},
    "control_groups": control_groups,
    "user_ids": user_ids,
    "pinned_memory": pinned_memory,
}


def attempt(function: Callable[[], Answer]) -> Answer:
    """Call a probe and return its answer, whatever happens."""
    try:
        return function()
    except ControlGroupsMissing as missing:
        number = missing.__cause__.errno if isinstance(missing.__cause__, OSError) else None
        return Answer(ok=False, found=missing.reason, errno=number or 0, fix=missing.fix)
    except OSError as error:
        return Answer(ok=False, found=error.strerror or str(error), errno=error.errno or 0)


if __name__ == "__main__":
    print(msgspec.json.encode(attempt(PROBES[sys.argv[1]])).decode())  # noqa: T201 - its only output
