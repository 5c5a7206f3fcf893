"""The plan for a host without namespaces. For development: PERMISSIVE alone comes to it, and says so.

Theory of operation. There is no root to pivot into and no process number to hide behind, so code sees the host. What
is left without privilege:

- a directory of its own, mode 0700, which the zygote removes with the sandbox;
- Landlock, where the kernel has it: the interpreter and system libraries can be read, the sandbox's own directory can
  be written, and nothing else opens: no home, no other sandbox, nobody else's `/proc`. Signals stay within (ABI 6);
- the system call filter, without sockets: with the host's network around it, code gets none. Nor a unix socket, whose
  connecting Landlock does not see: who reaches the session's message bus gets out;
- no new privileges, limits, no core dumps; as root a host user for each sandbox, and no capabilities.

Its processes end with it because they can't get away: the first is the one to whom orphans fall (a subreaper, as
process 1 of a namespace is), and what it leaves falls to the zygote. `enclave_worker.zygote.tree` does the rest.
"""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from enclave_worker.zygote import kernel

from .landlock import open_landlock_step
from .plan import FILTER, Plan, join_groups, limits
from .seccomp import compile_filter
from .spec import PACKAGES_PATH, Rlimit

if TYPE_CHECKING:
    from .plan import Privilege, Step
    from .spec import SandboxSpec

_OWN = "{scratch}/{slot}"
_PACKAGES = f"{{scratch}}{PACKAGES_PATH}"


def make_open_plan(
    spec: SandboxSpec,
    *,
    privilege: Privilege,
    uid: int,
    landlock_abi: int,
    control_groups: dict[str, str] | None = None,
) -> Plan:
    """Compile a spec for a host without namespaces: its mounts and names are left aside. See `plan.make_plan`."""
    groups = control_groups or {}
    landlock = [open_landlock_step(spec, landlock_abi, own=_OWN, packages=_PACKAGES)] if landlock_abi else []
    return Plan(
        launch=[],
        prepare=[*_detach(privilege), *_packages(spec)],
        settle=[],
        enclose=[
            *join_groups(groups),
            ["own directory", "own_directory", _OWN, "{uid}"],
            ["temporary files", "environment", "TMPDIR", _OWN],
            ["orphans to the first process", "prctl", kernel.PR_SET_CHILD_SUBREAPER, 1],
            *_identity(privilege),
            *limits(_rlimits(spec, privilege, uid)),
            *landlock,
            FILTER,
        ],
        privilege=privilege,
        seccomp_hex=compile_filter(spec.machine, memory_is_counted=False, own_network=False).hex(),
        driver=spec.driver,
        preload=spec.preload,
        landlock=bool(landlock),
        own_clocks=False,
        packages_path=_PACKAGES if spec.packages else "",
        env=tuple((name, value) for name, value in spec.env if value != PACKAGES_PATH),
        workdir="",
        control_groups=groups,
        scratch=tempfile.gettempdir(),
    )


def _detach(privilege: Privilege) -> list[Step]:
    steps: list[Step] = [["no groups", "no_groups"]] if privilege == "root" else []
    return [
        *steps,
        ["umask", "umask", 0o077],
        ["no core dumps", "rlimit", 4, 1, 1],
        ["no new privileges", "prctl", kernel.PR_SET_NO_NEW_PRIVS, 1],
    ]


def _packages(spec: SandboxSpec) -> list[Step]:
    """Links to what is installed: what lies beside it on the host stays out of `sys.path`."""
    steps: list[Step] = []
    for package in spec.packages:
        path = f"{{scratch}}{package.path}"
        if package.path != PACKAGES_PATH:
            steps.append([f"directory for {package.path}", "directory", str(PurePosixPath(path).parent)])
        steps.append([f"link {package.path}", "symlink", package.source, path])
    return steps


def _identity(privilege: Privilege) -> list[Step]:
    # Capabilities go with root's identity; a root that lacks some keeps the identity, and gives up those it has.
    as_root: list[Step] = [["empty bounding set", "bounding_set"], ["identity", "identity", "{uid}"]]
    return [
        *(as_root if privilege == "root" else []),
        ["no ambient capabilities", "prctl", kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL],
        ["no capabilities", "capabilities", 0],
        ["undumpable", "prctl", kernel.PR_SET_DUMPABLE, 0],
    ]


def _rlimits(spec: SandboxSpec, privilege: Privilege, uid: int) -> tuple[Rlimit, ...]:
    """Without a user namespace the kernel counts NPROC per host user: all that an ordinary user runs counts as well."""
    if privilege == "root":
        return spec.rlimits
    there = _tasks_of(uid)
    return tuple(_raised(limit, there) if limit.name == "NPROC" else limit for limit in spec.rlimits)


def _raised(limit: Rlimit, by: int) -> Rlimit:
    return msgspec.structs.replace(limit, soft=limit.soft + by, hard=limit.hard + by)


def _tasks_of(uid: int) -> int:
    """Return how many threads of a user there are."""
    count = 0
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                count += sum(1 for _ in (entry / "task").iterdir())
        except OSError:  # it ended
            continue
    return count
