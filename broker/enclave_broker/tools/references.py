"""Results that the guest is given as references, `{"$ref": {"id": "ref_..."}}`, and passes on to other tools.

They are kept as JSON text, so that every use has a copy of its own. A reference means something in its own session
only, and nothing after the session's end.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from enclave_protocol import Code

from .tool import ArgumentsRefused, ToolFailure

MARK = b'"$ref"'
"""What JSON text has to contain to contain a reference."""


class References:
    """The stored results of all sessions.

    Args:
        session_bytes: most that is kept for one session, and most that the references in one call may come to.
        total_bytes: most that is kept for all.
    """

    def __init__(self, *, session_bytes: int, total_bytes: int) -> None:
        self._session_bytes = session_bytes
        self._total_bytes = total_bytes
        self._sessions: dict[str, dict[str, bytes]] = {}
        self._used: dict[str, int] = {}

    @property
    def used_bytes(self) -> int:
        """What is kept now."""
        return sum(self._used.values())

    def put(self, session_id: str, tool_name: str, text: bytes) -> str:
        """Keep a result, and return its id; raises ToolFailure, `RESULT_TOO_LARGE`, if there is no room."""
        used = self._used.get(session_id, 0)
        for limit, had, whose in (
            (self._session_bytes, used, "this session"),
            (self._total_bytes, self.used_bytes, "all sessions"),
        ):
            if had + len(text) > limit:
                message = f"{tool_name} returned {len(text)} bytes to store; {whose} may have {limit}, and has {had}"
                raise ToolFailure(Code.RESULT_TOO_LARGE, message)
        reference = f"ref_{uuid.uuid4()}"
        self._sessions.setdefault(session_id, {})[reference] = text
        self._used[session_id] = used + len(text)
        return reference

    def resolve(self, session_id: str, tool_name: str, args: object) -> object:
        """Return arguments with what their references stand for.

        Raises:
            ArgumentsRefused: a reference is none of this session's, or they come to more than a session may have.
        """
        return _Resolving(self._sessions.get(session_id, {}), tool_name, self._session_bytes).value(args, ())

    def drop(self, session_id: str) -> None:
        """Forget what a session has stored."""
        self._sessions.pop(session_id, None)
        self._used.pop(session_id, None)


class _Resolving:
    def __init__(self, stored: dict[str, bytes], tool_name: str, left_bytes: int) -> None:
        self._stored = stored
        self._tool_name = tool_name
        self._left_bytes = self._limit_bytes = left_bytes

    def value(self, value: Any, path: tuple[str | int, ...]) -> Any:
        if isinstance(value, dict):
            reference = _reference_in(value)
            if reference is not None:
                return self._stored_value(reference, path)
            return {key: self.value(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, (*path, number)) for number, item in enumerate(value)]
        return value

    def _stored_value(self, reference: str, path: tuple[str | int, ...]) -> Any:
        where = ".".join(map(str, path))[:200] or "the argument"
        text = self._stored.get(reference)
        if text is None:
            raise ArgumentsRefused(f"{self._tool_name}: {where}: this session has no stored result {reference[:80]!r}")
        self._left_bytes -= len(text)
        if self._left_bytes < 0:
            reason = f"the results that the arguments refer to come to more than {self._limit_bytes} bytes"
            raise ArgumentsRefused(f"{self._tool_name}: {where}: {reason}")
        return msgspec.json.decode(text)


def token(reference: str) -> bytes:
    """Return the JSON text that stands for a stored result."""
    return msgspec.json.encode({"$ref": {"id": reference}})


def _reference_in(value: dict[str, Any]) -> str | None:
    inner = value.get("$ref")
    if len(value) == 1 and isinstance(inner, dict) and inner.keys() == {"id"} and isinstance(inner["id"], str):
        return inner["id"]
    return None
