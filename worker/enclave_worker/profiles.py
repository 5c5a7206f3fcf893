"""Profiles: the named environments that sessions ask for, read from TOML.

Theory of operation. A profile is data: what its zygote preloads, which installed packages its guests see, what they may
use. `load_profiles` reads the shipped file and, over it, the operator's; everything in a file is checked then, before
anything runs, and an error names the file, the profile, the field and what is allowed. What a worker makes of it, on
its host and at its level, is an `offers.Offer`.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from enclave_protocol import EnclaveError, RemoteProtocolError, parse_env, parse_limits
from enclave_protocol.languages import LANGUAGES, Language
from enclave_protocol.limits import split_path

from .sandbox.levels import LEVELS, LevelName

if TYPE_CHECKING:
    from collections.abc import Iterable

SHIPPED = Path(__file__).with_name("profiles.toml")
DEFAULT_PROFILE = "python"
"""What a session gets that names none."""
MIN_MEMORY_BYTES = 64 * 1024 * 1024
"""Least memory limit: the interpreter itself takes half of it in address space."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_ALLOW = re.compile(r"\*|[A-Za-z_][A-Za-z0-9_]*\*?")

MemoryBytes = Annotated[int, Meta(ge=MIN_MEMORY_BYTES, le=2**53 - 1)]


class ProfileError(EnclaveError):
    """A file of profiles, or a profile in it, can't be used; the message says where and what would be right."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named environment."""

    name: str
    """From the table's heading: `[profiles.NAME]`."""
    languages: Annotated[tuple[Language, ...], Meta(min_length=1)] = ("python", "shell")
    """What its guests may write; the first is what a session gets that names the profile and no language."""
    preload: tuple[str, ...] = ()
    """Modules that its zygote imports: a guest finds them loaded."""
    bare: bool = False
    """Whether to keep a second zygote without any of them, for code that imports nothing and awaits only tools."""
    packages: tuple[str, ...] = ()
    """Installed distributions, by the names that `pip` knows, which guests can import with all that they depend on."""
    packages_dir: str = ""
    """Instead: a directory that guests can import from, a virtual environment or a folder of unpacked wheels."""
    limits: dict[str, Any] = {}
    """Limits of a session that does not set them, by their names on the wire."""
    memory_limit_bytes: MemoryBytes | None = None
    """Memory of a sandbox; a session's `memoryLimitBytes` can only lower it. Default: `--memory-limit-bytes`."""
    spare_address_bytes: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 0
    """How much more than usual each process may map (`RLIMIT_AS`). Libraries such as numpy map more than they use."""
    processes: Annotated[int, Meta(ge=2, le=4096)] | None = None
    """Processes and threads of a sandbox. Default: `--processes`."""
    cpus: Annotated[float, Meta(ge=0, le=4096)] | None = None
    """Processors that a sandbox may keep busy at a time; 0: all. Default: `--cpus`."""
    cpu_time_ms: Annotated[int, Meta(ge=1, le=2**53 - 1)] | None = None
    """Processor time of a sandbox; a session's `cpuTimeMs` can only lower it. Default: `--cpu-time-ms`."""
    open_files: Annotated[int, Meta(ge=16, le=65_536)] | None = None
    """Descriptors of each process. Default: the level's."""
    disk_bytes: Annotated[int, Meta(ge=1024 * 1024, le=2**53 - 1)] | None = None
    """Size of each of a sandbox's three writable directories, and of a file. Default: the level's."""
    level: LevelName | None = None
    """Level whose limits hold where neither this profile nor an option says another, and whose layers must be there.
    Default: the worker's."""
    pool_size: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    """Sandboxes kept warm in each of its pools; 0 keeps none. Default: `--pool-size`."""
    env: dict[str, str] = {}
    """Environment variables that every guest has, and its zygote while it preloads."""
    allow_env: tuple[str, ...] = ("*",)
    """Environment variables that a session may set: names, or beginnings such as `APP_*`. Default: any."""

    def allows_env(self, name: str) -> bool:
        """Whether a session may set this environment variable."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.allow_env)


def load_profiles(names: Iterable[str] = (), file: str = "") -> dict[str, Profile]:
    """Return the profiles that a worker offers, by name.

    Args:
        names: which; without any, `python` and those of the file.
        file: the operator's, whose profiles replace shipped ones of the same name; none if empty.

    Raises:
        ProfileError: the file can't be used, or there is no profile of a name.
    """
    known = read_profiles(SHIPPED)
    own = read_profiles(Path(file)) if file else {}
    known |= own
    wanted = tuple(names) or (DEFAULT_PROFILE, *own)
    for name in wanted:
        if name not in known:
            raise ProfileError(
                f"no profile {name!r} (allowed: {', '.join(sorted(known))}, or one of a --profiles file)"
            )
    return {name: known[name] for name in wanted}


def read_profiles(path: Path) -> dict[str, Profile]:
    """Read a file of profiles; raises ProfileError naming the file, the profile, the field and what is allowed."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"profiles {path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeError) as error:
        raise ProfileError(f"profiles {path}: not TOML: {error}") from error
    tables = document.pop("profiles", None)
    if document or not isinstance(tables, dict):
        unknown = f"unknown table {next(iter(document))!r}" if document else "no profile in it"
        raise ProfileError(f"profiles {path}: {unknown} (allowed: tables named [profiles.NAME])")
    return {name: _profile(path, name, table) for name, table in tables.items()}


def _profile(path: Path, name: str, table: object) -> Profile:
    def bad(field: str, reason: str, allowed: str) -> ProfileError:
        where = f"profiles {path}, profile {name!r}" + (f", {field}" if field else "")
        return ProfileError(f"{where}: {reason} (allowed: {allowed})")

    if not _NAME.fullmatch(name):
        raise bad("", "not a name", "letters, digits, `.`, `_` and `-`, at most 128, beginning with a letter or digit")
    if not isinstance(table, dict) or "name" in table:
        raise bad("", "not a table" if not isinstance(table, dict) else "has a field `name`", f"[profiles.{name}]")
    try:
        profile = msgspec.convert({**table, "name": name}, Profile)
    except msgspec.ValidationError as error:
        reason, field = split_path(str(error))
        if "unknown field" in reason:
            field, reason = reason.split("`")[1], "unknown field"
            raise bad(field, reason, ", ".join(_FIELDS)) from error
        raise bad(field, reason, _ALLOWED.get(field.partition("[")[0], "see docs/profiles.md")) from error
    wrong = _wrong(profile)
    if wrong is not None:
        raise bad(*wrong)
    if profile.packages_dir:
        # Relative to the file, which is where whoever wrote it looks from.
        return msgspec.structs.replace(profile, packages_dir=str((path.parent / profile.packages_dir).resolve()))
    return profile


_FIELDS = tuple(field.name for field in msgspec.structs.fields(Profile) if field.name != "name")
_ALLOWED = {
    "languages": f"a list, not empty, of {', '.join(LANGUAGES)}",
    "preload": "a list of module names",
    "bare": "true or false",
    "packages": "a list of names of installed distributions",
    "packages_dir": "a directory",
    "limits": "a table of session limits",
    "memory_limit_bytes": f"a whole number from {MIN_MEMORY_BYTES}",
    "spare_address_bytes": "a whole number, 0 or more",
    "processes": "a whole number from 2 to 4096",
    "cpus": "a number, 0 or more",
    "cpu_time_ms": "a whole number above 0",
    "open_files": "a whole number from 16 to 65536",
    "disk_bytes": "a whole number from 1048576",
    "level": ", ".join(LEVELS),
    "pool_size": "a whole number from 0 to 10000",
    "env": "a table of texts",
    "allow_env": "a list of names, or beginnings such as APP_*",
}


_SANDBOX_LIMITS = {
    "memoryLimitBytes": "memory_limit_bytes",
    "memoryLimit": "memory_limit_bytes",
    "cpuTimeMs": "cpu_time_ms",
}
"""Limits of a session that here are fields of their own."""


def _wrong(profile: Profile) -> tuple[str, str, str] | None:
    """Return the first field that can't be right, why, and what is allowed."""
    for field, form in (("preload", _MODULE), ("allow_env", _ALLOW)):
        bad = next((text for text in getattr(profile, field) if not form.fullmatch(text)), None)
        if bad is not None:
            return field, f"{bad!r} is none", _ALLOWED[field]
    if profile.packages and profile.packages_dir:
        return "packages_dir", "given together with packages", "one of the two"
    try:
        parse_env(profile.env)
        parse_limits(profile.limits)
    except RemoteProtocolError as error:
        return error.field, error.reason, error.allowed
    sandboxes = {
        "memoryLimitBytes": "memory_limit_bytes",
        "memoryLimit": "memory_limit_bytes",
        "cpuTimeMs": "cpu_time_ms",
    }
    for name in sandboxes.keys() & profile.limits.keys():
        return f"limits.{name}", "is the sandbox's, not the session's", f"the field {sandboxes[name]} instead"
    return None
