"""What a sandbox is, as data."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from .levels import Resources

MIB = 1024 * 1024
_STACK_BYTES = 8 * MIB
"""What glibc reserves for a thread's stack, from the usual limit of 8 MiB."""


class Tmpfs(msgspec.Struct, frozen=True, kw_only=True):
    """A private writable directory, empty at first, gone with the sandbox. It lives in memory."""

    path: str
    size_bytes: int
    inodes: int
    """Files and directories it can hold."""
    mode: str
    """Octal permissions of its root."""
    owned: bool = False
    """Whether the guest owns its root; otherwise nobody that exists inside does."""


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A directory or file of installed packages that guests may import from, read-only."""

    source: str
    """On the host."""
    path: str
    """In the sandbox: not where the host has it, since that may be below `/tmp`, or name its user."""
    directory: bool


class Rlimit(msgspec.Struct, frozen=True, kw_only=True):
    """One resource limit, soft and hard."""

    name: str
    """As in `resource`, without the `RLIMIT_` prefix."""
    soft: int
    hard: int

    @property
    def number(self) -> int:
        """The kernel's number."""
        return int(getattr(resource, f"RLIMIT_{self.name}"))


def rlimits(resources: Resources, *, counted: bool) -> tuple[Rlimit, ...]:
    """Return what each process is limited to.

    Args:
        resources: what the whole sandbox may use.
        counted: whether control groups count memory and processes. They tell when they strike, so they have to strike
            first.
    """
    processes = resources.processes * (2 if counted else 1)
    address_space_bytes = resources.memory_limit_bytes + spare_address_bytes(resources, counted=counted)
    # A backstop, in whole seconds: the worker watches the whole sandbox's time, and is more exact.
    cpu_time_s = resources.cpu_time_ms // 1000 + 2
    return (
        # With a core_pattern that is a pipe the kernel ignores 0; only the value 1 keeps the helper from running.
        Rlimit(name="CORE", soft=1, hard=1),
        Rlimit(name="NOFILE", soft=resources.open_files, hard=resources.open_files),
        Rlimit(name="NPROC", soft=processes, hard=processes),
        Rlimit(name="FSIZE", soft=resources.disk_bytes, hard=resources.disk_bytes),
        Rlimit(name="CPU", soft=cpu_time_s, hard=cpu_time_s),
        Rlimit(name="AS", soft=address_space_bytes, hard=address_space_bytes),
        Rlimit(name="STACK", soft=_STACK_BYTES, hard=64 * MIB),
        Rlimit(name="MEMLOCK", soft=65536, hard=65536),
        Rlimit(name="MSGQUEUE", soft=65536, hard=65536),
        Rlimit(name="SIGPENDING", soft=512, hard=512),
        Rlimit(name="NICE", soft=0, hard=0),
        Rlimit(name="RTPRIO", soft=0, hard=0),
    )


def spare_address_bytes(resources: Resources, *, counted: bool) -> int:
    """Return how much more than its memory a process may map.

    Where a control group limits memory, address space only has to be bounded: the stacks of all the threads it may
    have (8 MiB each, hardly used) come on top. Elsewhere it is the limit, and those who want many threads make their
    stacks smaller (`threading.stack_size`).
    """
    return resources.processes * _STACK_BYTES if counted else 0


def tmpfs(size_bytes: int) -> tuple[Tmpfs, ...]:
    """Return the private writable directories, `size_bytes` each."""
    return (
        Tmpfs(path="/tmp", size_bytes=size_bytes, inodes=8192, mode="1777"),  # noqa: S108 - the sandbox's own
        Tmpfs(path="/workspace", size_bytes=size_bytes, inodes=8192, mode="0755", owned=True),
        Tmpfs(path="/dev/shm", size_bytes=size_bytes, inodes=1024, mode="1777"),  # noqa: S108 - the sandbox's own
    )


Driver = Literal["python", "javascript"]


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a guest sees and may use. `plan` turns it into steps."""

    machine: str
    """`uname -m`: x86_64 or aarch64."""
    hostname: str = "sandbox"
    uid: int = 1000
    """The guest's user and group id, inside."""
    visible: tuple[str, ...]
    """Host directories that appear, read-only, at the same path: the interpreter and its libraries."""
    visible_files: tuple[str, ...] = ()
    """The same, single files."""
    packages: tuple[Package, ...] = ()
    """Installed packages that are shown, at or below `PACKAGES_PATH`."""
    hidden: tuple[str, ...]
    """Directories below a visible one that appear empty: packages somebody installed on the host."""
    links: tuple[tuple[str, str], ...]
    """Symbolic links, `(target, path)`."""
    files: tuple[tuple[str, str], ...]
    """Small files of our own making, `(path, content)`."""
    devices: tuple[str, ...] = ("null", "zero", "full", "random", "urandom")
    """Device nodes of the host's `/dev`. All five are stateless."""
    tmpfs: tuple[Tmpfs, ...]
    workdir: str = "/workspace"
    loopback: bool = True
    """Whether `lo` is up. It leads nowhere else either way."""
    preload: tuple[str, ...] = ()
    """Modules that the zygote imports, so that importing them costs a guest nothing, and every fork a little."""
    env: tuple[tuple[str, str], ...] = ()
    """Environment variables of every guest, `(name, value)`; in force while the zygote preloads, too."""
    rlimits: tuple[Rlimit, ...]
    driver: Driver = "python"
    """What runs the guests' code: `python` runs the shell's scripts, too."""


PACKAGES_PATH = "/packages"
"""Where guests find installed packages. It is on their `sys.path` if there are any."""


def python_spec(resources: Resources, *, counted: bool) -> SandboxSpec:
    """Return the sandbox that every profile starts from: this host's interpreter and system libraries, nothing else.

    See `rlimits` for the arguments.
    """
    visible, links = _system_directories()
    directories, files = _interpreter_parts()
    visible += [path for path in directories if not _below(path, visible)]
    return SandboxSpec(
        machine=platform.machine(),
        visible=tuple(visible),
        visible_files=tuple(path for path in files if not _below(path, visible)),
        hidden=tuple(path for path in _installed_packages() if _below(path, visible)),
        links=tuple(links),
        tmpfs=tmpfs(resources.disk_bytes),
        rlimits=rlimits(resources, counted=counted),
        files=(
            ("/etc/passwd", "sandbox:x:1000:1000::/workspace:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"),
            ("/etc/group", "sandbox:x:1000:\nnogroup:x:65534:\n"),
            ("/etc/hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n"),
            ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
        ),
    )


def bare(spec: SandboxSpec) -> SandboxSpec:
    """Return the same sandbox for code that imports nothing and awaits only tools: nothing preloaded, no `lo`."""
    return msgspec.structs.replace(spec, preload=(), loopback=False)


def javascript(spec: SandboxSpec, library: Package) -> SandboxSpec:
    """Return the same sandbox for guests in JavaScript, with nothing in it but the engine; they have no sockets."""
    env = tuple((name, value) for name, value in spec.env if value != PACKAGES_PATH)
    engine = (PurePosixPath(library.path).name.partition(".")[0],)
    return msgspec.structs.replace(
        spec, driver="javascript", preload=engine, packages=(library,), env=env, loopback=False
    )


def interpreter() -> str:
    """Return the path of the real interpreter behind any virtual environment."""
    return os.path.realpath(sys.executable)


def _version() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _system_directories() -> tuple[list[str], list[tuple[str, str]]]:
    """Programs and shared libraries: /usr/bin and the lib directories, and what the root directory calls them."""
    names = ("bin", "lib", "lib32", "lib64", "libx32")
    visible = [f"/usr/{name}" for name in names if Path("/usr", name).is_dir() and not Path("/usr", name).is_symlink()]
    visible += ["/usr/share/zoneinfo"] if Path("/usr/share/zoneinfo").is_dir() else []
    links: list[tuple[str, str]] = []
    for name in names:
        path = Path("/", name)
        if path.is_symlink():
            links.append((str(path.readlink()), str(path)))
        elif path.is_dir():
            visible.append(str(path))
    return visible, links


def _interpreter_parts() -> tuple[list[str], list[str]]:
    """The interpreter's own directories and files. Below /usr, which others share, only what is surely Python's."""
    prefix = Path(sys.base_prefix)
    if prefix.is_relative_to("/usr"):
        libraries = [str(path) for path in (prefix / "lib").glob("libpython*") if path.is_file()]
        return [str(prefix / "lib" / _version())], [interpreter(), *libraries]
    return [str(path) for path in (prefix / "bin", prefix / "lib") if path.is_dir()], []


def _installed_packages() -> list[str]:
    roots = {Path(sys.base_prefix, "lib", _version()), Path("/usr/lib/python3"), Path("/usr/lib", _version())}
    found = {root / name for root in roots for name in ("site-packages", "dist-packages")}
    return sorted(str(path) for path in found if path.is_dir())


def _below(path: str, visible: list[str]) -> bool:
    return any(Path(path).is_relative_to(root) for root in visible)
