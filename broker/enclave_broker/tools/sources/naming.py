"""What tools of a source are called. Pure."""

from __future__ import annotations

import hashlib
import re

from enclave_broker.tools.tool import MAX_NAME_CHARS


def safe_name(text: str) -> str:
    """Return a tool's name made of `A-Z a-z 0-9 _ . -`; one that is too long ends in a hash of the whole."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_") or "tool"
    if len(name) <= MAX_NAME_CHARS:
        return name
    return f"{name[: MAX_NAME_CHARS - 9]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def operation_name(source: str, operation_id: object, method: str, path: str, taken: set[str]) -> str:
    """Return a name for the tool of an operation that none of these is."""
    by_path = f"{method}_{path.strip('/')}"
    own = operation_id if isinstance(operation_id, str) and operation_id else by_path
    # By its method and path rather than by a number: that does not change when others come and go.
    for candidate in (own, by_path if own != by_path else f"{by_path}_{method}"):
        name = safe_name(f"{source}_{candidate}")
        if name not in taken:
            return name
    number = 2
    while (name := safe_name(f"{source}_{own}_{number}")) in taken:
        number += 1
    return name
