"""Installed packages as files: which a distribution consists of, and those it depends on."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .sandbox.spec import PACKAGES_PATH, Package

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_ENTRIES = 150
"""Each is a mount that every sandbox gets a copy of, and three steps of a plan, which has to fit into one packet."""

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_EXTRA = re.compile(r"\bextra\s*==")


class NotInstalled(Exception):  # noqa: N818 - a fact about the host
    """A distribution is not installed; `name` is its name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Unusable(Exception):  # noqa: N818 - a fact about the host
    """What is installed can't be shown to guests; the text says why and what to do instead."""


def directory(path: Path) -> str:
    """Return where `path` has its packages: a virtual environment's `site-packages`, or itself; raises Unusable."""
    if not path.is_dir():
        raise Unusable(f"packages_dir {path} is not a directory")
    if not (path / "pyvenv.cfg").is_file():
        return str(path)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = path / "lib" / version / "site-packages"
    if not found.is_dir():
        raise Unusable(f"packages_dir {path} is a virtual environment without {version}, which this worker runs on")
    return str(found)


def of_distributions(names: Iterable[str]) -> tuple[Package, ...]:
    """Return the files and directories of distributions and of all that they require.

    A requirement that is not installed is left out: most are meant for other systems, and one that is needed fails the
    import that needs it. Packages that share a directory (a namespace) come with each other.

    Raises:
        NotInstalled: one of `names` is not.
        Unusable: one has no list of its files, or is not where it says, or all together are too many.
    """
    found: dict[str, Package] = {}
    for distribution in _with_requirements(names):
        for entry, source in _entries(distribution).items():
            path = str(PurePosixPath(PACKAGES_PATH, entry))
            found.setdefault(entry, Package(source=str(source), path=path, directory=source.is_dir()))
    if len(found) > MAX_ENTRIES:
        hint = "install them into a virtual environment of their own and name that as packages_dir"
        raise Unusable(f"its packages are {len(found)} files and directories, more than {MAX_ENTRIES}: {hint}")
    return tuple(found[entry] for entry in sorted(found))


def _with_requirements(names: Iterable[str]) -> list[importlib.metadata.Distribution]:
    wanted = [(name, True) for name in names]
    found: dict[str, importlib.metadata.Distribution] = {}
    while wanted:
        name, required = wanted.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            if required:
                raise NotInstalled(name) from None
            continue
        found[key] = distribution
        for text in distribution.requires or ():
            requirement = _REQUIREMENT.match(text)
            if requirement and not _EXTRA.search(text):
                wanted.append((requirement[1], False))
    return list(found.values())


def _entries(distribution: importlib.metadata.Distribution) -> dict[str, Path]:
    name = distribution.metadata["Name"]
    hint = "install it into a virtual environment of its own and name that as packages_dir"
    if distribution.files is None:
        raise Unusable(f"{name} has no list of its files: {hint}")
    # Programs (`../../../bin/f2py`) and the compiled form of single files are left out.
    tops = {PurePosixPath(file).parts[0] for file in distribution.files} - {"..", "/", "__pycache__"}
    if any(top.endswith(".pth") for top in tops):
        raise Unusable(f"{name} is installed in editable form, or changes how Python starts: {hint}")
    root = Path(str(distribution.locate_file(""))).resolve()
    entries = {top: root / top for top in tops}
    missing = [str(path) for path in entries.values() if not path.exists()]
    if missing:
        raise Unusable(f"{name} lacks {missing[0]}: install it again")
    return entries
