"""What the languages of guests need of the worker's host, and how what it lacks is mended."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .sandbox.spec import PACKAGES_PATH, Package
from .zygote import shell

if TYPE_CHECKING:
    from enclave_protocol.languages import Language

_LIBRARY = "_quickjs"


def lacking() -> dict[Language, str]:
    """Return the languages that no guest can have here, each with the reason and what to do."""
    found: dict[Language, str] = {}
    if _library() is None:
        command = f"{Path(sys.executable).name} -m pip install 'enclave[javascript]'"
        found["javascript"] = f"quickjs-ng is not installed: {command}"
    if not Path(shell.SHELL).exists():
        found["shell"] = f"there is no {shell.SHELL}"
    return found


def javascript_package() -> Package:
    """Return the engine as a package that sandboxes are shown: one file, of which its helpers are no part."""
    library = _library()
    assert library is not None, "asked only if JavaScript is not lacking"
    return Package(source=str(library), path=f"{PACKAGES_PATH}/{library.name}", directory=False)


def _library() -> Path | None:
    found = importlib.util.find_spec(_LIBRARY)
    return None if found is None or found.origin is None else Path(found.origin).resolve()
