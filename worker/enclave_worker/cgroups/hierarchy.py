"""The worker's part of the control group tree: made at its start, gone at its end, and swept up after one that died.

Theory of operation. Below our own group we make one directory, in v1 in each controller's tree:

    v1   <own>/enclave-<pid>/slot-0, slot-1, …          for memory, pids, cpu, cpuacct
    v2   <own>/enclave-<pid>/worker                      we ourselves
         <own>/enclave-<pid>/sandboxes/slot-0, slot-1, …

In v2 a group with processes in it cannot hand controllers down, so the worker first moves into a leaf. If others share
our group (a shell, say) that fails, unless the group is the root of a container: then all in it are moved. A worker
that is started in another's leaf begins beside it, not below it. Whoever is the last to stop puts all of them back;
before that the group hands controllers down and takes nobody.

A slot's directories are made when it is first used and stay until the end; sandboxes join them one after another. The
zygote makes a sandbox join, by a descriptor of the directory above the slots, as the first thing after the fork.

We hold a lock on each directory of ours. A lock that can be taken belongs to a worker that is gone, so whoever starts
or stops next removes its directories: control groups are all that a killed worker can leave behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .group import ControlGroup, ControlGroupV1, ControlGroupV2, GroupLimits, write_control
from .layout import CONTROLLERS, DELEGATE, PREFIX, WORKER_LEAF, WRITABLE, ControlGroupsMissing, find_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .layout import Layout

log = logging.getLogger("enclave.worker")

_MOVES = 20
"""How often all of a container's processes are moved: those that are moved may have forked in the meantime."""
_WORKER_WEIGHT = 1000
"""v2: of the worker's own group beside the one of all sandboxes, which has the usual 100."""


class ControlGroups:
    """The directories of one worker. Make one with `open`; `close` it when every sandbox is gone.

    Owns its lock descriptors and, through them, the directories.
    """

    def __init__(
        self,
        layout: Layout,
        make_directory: Callable[[str], None] = os.mkdir,
        remove_directory: Callable[[str], None] = os.rmdir,
    ) -> None:
        self._layout = layout
        self._make_directory = make_directory
        self._remove_directory = remove_directory
        self._bases: dict[str, str] = {}  # where our tree begins, by controller
        self._groups: dict[int, ControlGroup] = {}
        self._undo = contextlib.ExitStack()

    def __repr__(self) -> str:
        return f"<ControlGroups v{self._layout.version} groups={len(self._groups)}>"

    @classmethod
    def open(cls) -> ControlGroups:
        """Find our control group, remove what dead workers left in it, and make our own directory.

        Raises:
            ControlGroupsMissing: this host gives us none that we can use; says why and what would help.
        """
        own, mounts = (Path(f"/proc/self/{name}").read_text() for name in ("cgroup", "mountinfo"))
        self = cls(find_layout(own, mounts, lambda path: Path(path).read_text()))
        self.prepare()
        return self

    @property
    def version(self) -> int:
        """1 or 2."""
        return self._layout.version

    @property
    def slot_parents(self) -> dict[str, str]:
        """By controller (v2: one, `unified`): the directory that holds the slots."""
        if self.version == 1:
            return dict(self._bases)
        return {"unified": f"{self._bases['memory']}/sandboxes"}

    @property
    def _leaf(self) -> str:
        return f"{self._bases['memory']}/{WORKER_LEAF}"

    def prepare(self) -> None:
        """Sweep, then make and lock our directories. What `open` does after finding the layout."""
        try:
            for controller, directory in self._layout.directories.items():
                self._bases[controller] = self._make_base(directory)
            if self.version == 2:
                self._hand_down()
            self._sweep()
        except OSError as error:
            self.close()
            fix = DELEGATE if self.version == 2 and not self._layout.at_root else WRITABLE
            raise ControlGroupsMissing(f"{error.strerror}: {error.filename}", fix) from error

    def group(self, number: int, limits: GroupLimits) -> ControlGroup:
        """Return slot `number`'s group, made if it is not there, begun anew. All of one number have the same limits."""
        group = self._groups.get(number)
        if group is not None:
            try:
                group.begin()
            except OSError as error:  # somebody tidied up: an idle group looks like a forgotten one
                log.warning("control group %d is gone (%s): making another", number, error.strerror)
                self._groups.pop(number).close()
            else:
                return group
        group = self._make_group(number, limits)
        group.begin()
        self._groups[number] = group
        return group

    def _make_group(self, number: int, limits: GroupLimits) -> ControlGroup:
        directories = {
            name: f"{self.slot_parents.get(name) or self.slot_parents['unified']}/slot-{number}"
            for name in CONTROLLERS[self.version]
        }
        for directory in dict.fromkeys(directories.values()):
            with contextlib.suppress(FileExistsError):
                self._make_directory(directory)
        return (ControlGroupV1 if self.version == 1 else ControlGroupV2)(directories, limits)

    def discard(self, number: int) -> None:
        """Remove slot `number`'s group, whose sandbox is gone: one that cannot serve again."""
        self._groups.pop(number).close()
        for parent in self.slot_parents.values():
            self._remove(f"{parent}/slot-{number}")

    def close(self) -> None:
        """Remove all our directories. Safe to call again."""
        for group in self._groups.values():
            group.close()
        self._groups.clear()
        for directory in dict.fromkeys(self.slot_parents.values()) if self._bases else ():
            self._remove_slots(directory)
        self._undo.close()
        ours = frozenset(self._bases.values())
        self._bases.clear()
        if ours:
            with contextlib.suppress(OSError):  # a tree that nobody can look into any more
                self._sweep(apart_from=ours)

    def _make_base(self, directory: str) -> str:
        """Make `enclave-<pid>`, locked before anybody could take it for a dead worker's."""
        base = f"{directory}/{PREFIX}{os.getpid()}"
        if base in self._bases.values():
            return base  # v2: one for all controllers
        while True:
            with contextlib.suppress(FileExistsError):
                self._make_directory(base)
            try:
                lock = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # swept away before we could say that it is ours
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = os.path.samestat(os.fstat(lock), os.stat(base))  # noqa: PTH116 - as above
            except FileNotFoundError:
                held = False  # the same, a moment later
            except BlockingIOError:
                os.close(lock)
                base += "x"  # another worker in this very process
                continue
            if held:
                self._undo.callback(os.close, lock)
                self._undo.callback(self._remove, base)
                for parent in (base, f"{base}/sandboxes"):
                    self._remove_slots(parent)  # of a dead worker that had our process id
                return base
            os.close(lock)

    def _sweep(self, apart_from: frozenset[str] = frozenset()) -> None:
        for directory in dict.fromkeys(self._layout.directories.values()):
            with os.scandir(directory) as entries:
                left = [entry.path for entry in entries if entry.name.startswith(PREFIX)]
            for path in left:
                if path not in apart_from:
                    with _lock_of_the_dead(path) as dead:
                        if dead:
                            self._remove_all(path, directory)

    def _remove_all(self, base: str, directory: str) -> None:
        log.info("removing the control groups of a worker that is gone: %s", base)
        for parent in (base, f"{base}/sandboxes"):
            self._remove_slots(parent)
        if self.version == 2:  # a container's processes, which that worker had moved, or we started in it
            _move(f"{base}/{WORKER_LEAF}", self._leaf if self._bases else directory)
        for part in (f"{base}/sandboxes", f"{base}/{WORKER_LEAF}", base):
            self._remove(part)

    def _hand_down(self) -> None:
        """v2: leave our group for a leaf of it, and let the sandboxes' part have the controllers."""
        own, base = self._layout.directories["memory"], self._bases["memory"]
        leaf, parent = self._leaf, f"{base}/sandboxes"
        for path in (leaf, parent):
            with contextlib.suppress(FileExistsError):
                self._make_directory(path)
            self._undo.callback(self._remove, path)
        enable = " ".join(f"+{name}" for name in CONTROLLERS[2])
        write_control(f"{leaf}/cgroup.procs", str(os.getpid()))
        self._undo.callback(_move, leaf, own)
        if self._layout.at_root:
            _move(own, leaf)
        for path in (own, base, parent):
            write_control(f"{path}/cgroup.subtree_control", enable)
            self._undo.callback(_disable, f"{path}/cgroup.subtree_control", enable.replace("+", "-"))
        write_control(f"{leaf}/cpu.weight", str(_WORKER_WEIGHT))

    def _remove_slots(self, directory: str) -> None:
        with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
            for path in [entry.path for entry in entries if entry.name.startswith("slot-")]:
                self._remove(path)

    def _remove(self, path: str) -> None:
        """Remove a directory. One that is in use stays, for the next sweep."""
        try:
            self._remove_directory(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("control group %s stays: %s", path, error.strerror)


def _move(source: str, target: str) -> None:
    """Move all processes, as far as that can be done."""
    for _ in range(_MOVES):
        moved = False
        with contextlib.suppress(FileNotFoundError):
            for pid in Path(source, "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):  # it has just ended, or the target hands down for another worker
                    write_control(f"{target}/cgroup.procs", pid)
                    moved = True
        if not moved:
            return


def _disable(path: str, controllers: str) -> None:
    with contextlib.suppress(OSError):  # another worker beside us still needs them
        write_control(path, controllers)


@contextlib.contextmanager
def _lock_of_the_dead(path: str) -> Iterator[bool]:
    """Say whether the worker that made this directory is gone, and keep everybody else away from it meanwhile.

    A worker that starts may have made it this moment: it must not get the lock before we have removed what it made, so
    that it sees it gone and makes another.
    """
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield False  # gone, or somebody else's
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(lock)
