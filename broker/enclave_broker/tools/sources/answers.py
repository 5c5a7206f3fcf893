"""What an HTTP server answered becomes a value for the guest, or a failure with a code. Pure."""

from __future__ import annotations

import base64
import codecs
import email.utils
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from enclave_broker.tools.tool import ToolFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_RETRY_AFTER_MS = 24 * 3600 * 1000
_NOT_DONE = frozenset({429, 503})
"""The server says that it did nothing: any request can be tried again."""
_CHARSETS = frozenset(
    {
        *("ascii", "utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-32-le"),
        *("cp932", "cp949", "big5", "euc_jp", "euc_kr", "gb2312", "gbk", "gb18030", "koi8-r", "koi8-u", "shift_jis"),
        *(f"iso8859-{number}" for number in range(1, 17)),
        *(f"cp{number}" for number in range(1250, 1259)),
    }
)
"""Python's names of those that are decoded in a time that grows with the text (`punycode` takes the square of it), to
text that UTF-8 can say (`utf-7` and `unicode_escape` make halves of characters)."""
_PERHAPS_DONE = frozenset({408, 500, 502, 504})
"""Nobody knows: only what may be done twice can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """What came back."""

    status: int
    reason: str
    headers: Mapping[str, str]
    """By names in small letters."""
    body: bytes


def read_answer(answer: HttpAnswer, *, idempotent: bool, now_s: float) -> Any:
    """Return the value in a 2xx answer: JSON, text, `{base64, contentType}` for bytes, or None for nothing.

    Args:
        answer: the server's.
        idempotent: whether the request may be sent twice.
        now_s: seconds since the epoch.

    Raises:
        ToolFailure: `HTTP_<status>` for any other answer, saying whether and when it can be tried again;
            `UPSTREAM_ERROR` for one that is not what it says it is.
    """
    if not 200 <= answer.status < 300:
        raise _failure(answer, idempotent=idempotent, now_s=now_s)
    if not answer.body:
        return None
    media_type = _media_type(answer)
    if media_type == "application/json" or media_type.endswith("+json"):
        try:
            return msgspec.json.decode(answer.body)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ToolFailure("UPSTREAM_ERROR", f"the server's answer is not the JSON it says it is: {error}") from None
    text = _text(answer)
    if text is not None:
        return text
    return {"base64": base64.b64encode(answer.body).decode(), "contentType": media_type or "application/octet-stream"}


def _failure(answer: HttpAnswer, *, idempotent: bool, now_s: float) -> ToolFailure:
    # Not cut here: half a secret would not be found any more by who takes secrets out.
    said = " ".join((_text(answer) or "").split())
    message = f"HTTP {answer.status} {answer.reason}".rstrip() + (f": {said}" if said else "")
    retryable = answer.status in _NOT_DONE or (idempotent and answer.status in _PERHAPS_DONE)
    after_ms = _retry_after_ms(answer.headers.get("retry-after", ""), now_s) if retryable else None
    return ToolFailure(f"HTTP_{answer.status}", message, retryable=retryable, retry_after_ms=after_ms)


def _retry_after_ms(value: str, now_s: float) -> int | None:
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(int(value[:10]) * 1000, MAX_RETRY_AFTER_MS)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return min(max(0, round((at.timestamp() - now_s) * 1000)), MAX_RETRY_AFTER_MS)


def _media_type(answer: HttpAnswer) -> str:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower()


def _text(answer: HttpAnswer) -> str | None:
    """Return the body as text if it is text."""
    media_type = _media_type(answer)
    textual = media_type.startswith("text/") or media_type.endswith(("json", "xml", "yaml", "javascript"))
    if media_type and not textual:
        return None
    charset = "utf-8"
    for part in answer.headers.get("content-type", "").split(";")[1:]:
        name, _, value = part.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip('"')
    try:
        return _decoder(charset)(answer.body)[0]
    except (ValueError, LookupError):  # UnicodeError; a name with a NUL in it
        return answer.body.decode("utf-8", "replace") if textual else None


def _decoder(charset: str) -> Callable[[bytes], tuple[str, int]]:
    found = codecs.lookup(charset)
    if found.name not in _CHARSETS:
        raise LookupError(charset)
    return found.decode
