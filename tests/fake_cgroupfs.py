"""Control group trees made of plain files: what the kernel would put into a new directory, and no counting."""

from __future__ import annotations

import shutil
from pathlib import Path

from enclave_worker.cgroups import CONTROLLERS, Layout

V2_FILES = {
    "cgroup.controllers": "cpu memory pids\n",
    "cgroup.procs": "",
    "cgroup.subtree_control": "",
    "cpu.max": "max 100000\n",
    "cpu.stat": "usage_usec 0\nuser_usec 0\nsystem_usec 0\n",
    "cpu.weight": "100\n",
    "memory.current": "0\n",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
    "memory.max": "max\n",
    "memory.oom.group": "0\n",
    "memory.peak": "0\n",
    "memory.swap.max": "max\n",
    "pids.events": "max 0\n",
    "pids.max": "max\n",
}
V1_FILES = {
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712\n",
        "memory.memsw.limit_in_bytes": "9223372036854771712\n",
        "memory.max_usage_in_bytes": "0\n",
        "memory.usage_in_bytes": "0\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
        "memory.swappiness": "60\n",
    },
    "pids": {"pids.max": "max\n", "pids.events": "max 0\n"},
    "cpu": {"cpu.cfs_period_us": "100000\n", "cpu.cfs_quota_us": "-1\n"},
    "cpuacct": {"cpuacct.usage": "0\n"},
}


class FakeTree:
    """A tree below `root`. Give its methods to `ControlGroups`; leave files out with `without`.

    Files of `read_only` have no mode bit for writing, as those that the kernel lets nobody write.
    """

    def __init__(
        self,
        root: Path,
        version: int,
        without: frozenset[str] = frozenset(),
        read_only: frozenset[str] = frozenset(),
    ) -> None:
        self.root = root
        self.version = version
        self.without = without
        self.read_only = read_only
        self.layout = Layout(
            version=2 if version == 2 else 1,
            directories={name: str(root if version == 2 else root / name) for name in CONTROLLERS[version]},
        )
        root.mkdir(exist_ok=True)
        if version == 2:
            self._fill(root, V2_FILES)
        else:
            for name in CONTROLLERS[1]:
                (root / name).mkdir()

    def make(self, path: str) -> None:
        """Make a directory as the kernel does."""
        Path(path).mkdir()
        if self.version == 2:
            self._fill(Path(path), V2_FILES)
        else:
            self._fill(Path(path), V1_FILES[Path(path).relative_to(self.root).parts[0]])

    def remove(self, path: str) -> None:
        """Remove a directory: its own files don't count, others in it do."""
        if any(entry.is_dir() for entry in Path(path).iterdir()):
            raise OSError(39, "Directory not empty", path)
        shutil.rmtree(path)

    def _fill(self, directory: Path, files: dict[str, str]) -> None:
        for name, text in files.items():
            if name not in self.without:
                (directory / name).write_text(text)
                if name in self.read_only:
                    (directory / name).chmod(0o444)
