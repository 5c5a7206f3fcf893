"""The cases: what each attempts, what must stop it, and its code.

Theory of operation. A case is a file in `cases/`: a header of comments, then guest code (the body of an async
function).

    # attempts: change the host's clock
    # layer: system call filter
    # category: kernel
    # outcomes: OK
    # evidence: settimeofday, clock_settime
    # host: unchanged
    refused("settimeofday", lambda: call("settimeofday", 0, 0))
    ...

The code says what came of each attempt, by the functions of `cases/_prelude.py`, in lines `HELD name: how` and
`BREACH name: what`. Every name of `evidence` must be heard of, so that an attempt that was never made can't pass for
one that was refused. A line `# %% session` starts a further session of the same case, run after the one before it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from enclave_protocol import Code
from enclave_worker.sandbox.levels import Layer

CASES = Path(__file__).with_name("cases")
CATEGORIES = (
    *("files", "kernel", "network", "processes", "resources"),
    *("identity", "information", "control socket", "python level"),
)
UNCHANGED, OTHERS_SERVED = "unchanged", "others served"
HOST_STATES = (UNCHANGED, OTHERS_SERVED)
"""`unchanged`: nothing planted was touched, nothing survived, the worker serves on: always checked. `others served`:
sessions that run beside the attack also end well."""
NEEDS = ("x86_64", Layer.CONTROL_GROUPS.value, Layer.OWN_USER.value)
"""What a case may ask of the sandbox or the machine."""
OK = "OK"
"""The outcome of a session that returned."""

_FIELD = re.compile(r"# (\w+): (.*)")
_SESSION = "# %% session\n"
_REQUIRED = ("attempts", "layer", "category", "outcomes", "evidence", "host")
_OPTIONAL = ("needs", "limits", "distinct")


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One attack."""

    name: str
    """The name of its file, without `.py`."""
    attempts: str
    layer: str
    """What must stop it."""
    category: str
    outcomes: frozenset[str]
    """The codes of the last session's `final` that are allowed; `OK` if it may return."""
    evidence: tuple[str, ...]
    """Attempts that must be seen to have been made."""
    host: tuple[str, ...]
    """What the host must look like, of `HOST_STATES`."""
    needs: tuple[str, ...] = ()
    """Of `NEEDS`: what must be there for the case to apply."""
    limits: dict[str, Any] = {}
    """The session's limits that differ from the runner's."""
    distinct: tuple[str, ...] = ()
    """Attempts whose words must differ from session to session."""
    sessions: tuple[str, ...]
    """The code of each session, in order."""


def parse(name: str, text: str) -> Case:
    """Read one case.

    Raises:
        ValueError: the header lacks something, or says something unknown.
    """
    header: dict[str, str] = {}
    for line in text.splitlines():
        field = _FIELD.fullmatch(line)
        if field is None:
            break
        header[field[1]] = field[2].strip()
    if missing := [key for key in _REQUIRED if not header.get(key)]:
        raise ValueError(f"{name}: the header does not say {', '.join(missing)}")
    if unknown := set(header) - {*_REQUIRED, *_OPTIONAL}:
        raise ValueError(f"{name}: the header says {', '.join(sorted(unknown))}, which nothing reads")
    return Case(
        name=name,
        attempts=header["attempts"],
        layer=header["layer"],
        category=_known(name, [header["category"]], CATEGORIES)[0],
        outcomes=frozenset(_known(name, header["outcomes"].split(), [OK, *map(str, Code)])),
        evidence=_listed(header["evidence"]),
        host=_known(name, _listed(header["host"]), HOST_STATES),
        needs=_known(name, _listed(header.get("needs", "")), NEEDS),
        limits=json.loads(header.get("limits", "{}")),
        distinct=_listed(header.get("distinct", "")),
        sessions=tuple(text.split(_SESSION)),
    )


def load(directory: Path = CASES) -> list[Case]:
    """Read every case, by name; raises ValueError for the first that is wrong."""
    files = sorted(path for path in directory.glob("*.py") if not path.name.startswith("_"))
    return [parse(path.stem, path.read_text(encoding="utf-8")) for path in files]


def prelude() -> str:
    """Return the guest code that comes before every session's."""
    return (CASES / "_prelude.py").read_text(encoding="utf-8")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _known(name: str, words: list[str] | tuple[str, ...], allowed: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if word not in allowed:
            raise ValueError(f"{name}: {word!r} is none of {', '.join(allowed)}")
    return tuple(words)
