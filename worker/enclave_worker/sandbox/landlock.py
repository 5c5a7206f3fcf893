"""The second wall over the file system: what Landlock is told.

Theory of operation. Mounts decide what a path leads to. Landlock looks at what was reached, however that came about,
each time something is opened, made, renamed or removed: it climbs from there through the mounts above, and allows what
the rules that it passes allow. Rules hold for directories, not for paths or mounts. So two mistakes of ours would harm
no one:

- a descriptor or working directory of the host's that is left behind: no rule lies above it, nothing opens through it;
- something bound into our root writable: only a sandbox's own tmpfs has a rule for writing.

It has no say over what is open already, nor over `stat`, `chdir`, `chmod`, and `connect` to a unix socket's path.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .spec import PACKAGES_PATH

if TYPE_CHECKING:
    from .plan import Step
    from .spec import SandboxSpec

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in range(13, 16))
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1, 2
_LOG_SAME_EXEC_OFF = 1

_READ = EXECUTE | READ_FILE | READ_DIR
_DEVICE = WRITE_FILE | IOCTL_DEV
_OWN = (
    *(WRITE_FILE, TRUNCATE, REFER, REMOVE_DIR, REMOVE_FILE),
    *(MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_SYM),
)
"""What a guest may do on its own tmpfs beside reading. No device nodes: the self-test relies on that."""


def handled(abi: int) -> int:
    """Return the LANDLOCK_ACCESS_FS_* bits that an ABI knows, all of which we have it forbid.

    ABI 1 has no REFER, and forbids moving and linking files from one directory to another altogether, with EXDEV.
    """
    known = MAKE_SYM * 2 - 1
    known |= REFER if abi >= 2 else 0
    known |= TRUNCATE if abi >= 3 else 0
    known |= IOCTL_DEV if abi >= 5 else 0
    return known


def scoped(abi: int) -> int:
    """Return the LANDLOCK_SCOPE_* bits: abstract sockets and signals reach the sandbox's own processes only."""
    return SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if abi >= 6 else 0


def landlock_step(spec: SandboxSpec, abi: int) -> Step:
    """Return the step that puts a sandbox behind Landlock of this ABI (1 or more).

    TCP ports (ABI 4) are not handled: the network namespace has nobody but the guest in it.
    """
    rules = [("/", _READ)]
    rules += [(tmpfs.path, sum(_OWN)) for tmpfs in spec.tmpfs]
    # One for all of `spec.devices`, since each rule costs every sandbox 4 microseconds: nothing else lies there.
    rules += [("/dev", _DEVICE)]
    return _step(abi, rules)


def open_landlock_step(spec: SandboxSpec, abi: int, *, own: str, packages: str) -> Step:
    """Return the step for a host without namespaces, where `/` is the host's: everything has to be named.

    Args:
        spec: the sandbox.
        abi: Landlock's ABI, 1 or more.
        own: the sandbox's own directory.
        packages: the directory with links to its packages.
    """
    files = _DEVICE | READ_FILE | EXECUTE
    rules = [(path, _READ) for path in spec.visible]
    # Of what the loader, and a program it loads, look up; absent on some systems.
    shared = [path for path in ("/etc/ld.so.cache", "/etc/localtime") if Path(path).is_file()]
    rules += [(path, READ_FILE | EXECUTE) for path in (*spec.visible_files, *shared)]
    for package in spec.packages:
        rules.append((package.source, _READ if package.directory else READ_FILE))
    rules += [(packages, READ_DIR)] if any(package.path != PACKAGES_PATH for package in spec.packages) else []
    rules += [(f"/dev/{name}", files) for name in spec.devices]
    # The first process's own, and not those it starts: there is no rule for "one's own".
    rules += [("/proc/self", READ_FILE | READ_DIR), (own, _READ | sum(_OWN))]
    return _step(abi, rules)


def _step(abi: int, rules: list[tuple[str, int]]) -> Step:
    # A guest that tries in a loop what is refused must not fill the host's audit log.
    flags = _LOG_SAME_EXEC_OFF if abi >= 7 else 0
    step: Step = ["Landlock", "landlock", handled(abi), scoped(abi), flags]
    for path, access in rules:
        step += [path, access & handled(abi)]
    return step
