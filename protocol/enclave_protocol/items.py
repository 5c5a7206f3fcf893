"""One piece of code, many inputs: how an input gets into the code.

It travels in the code itself, as an assignment to `item` in front of it: nothing has to be read, and what runs is what
anybody could have written. The assignment stands on the code's own first line, so that the line numbers of errors are
the code's own. Python does not allow that before a compound statement such as `for`: there it gets a line to itself,
and lines count from it.
"""

from __future__ import annotations

import re
import shlex

import msgspec

from .errors import RemoteProtocolError

# Told by its first word, and not by a parser: whoever writes the code would choose how long that takes.
_COMPOUND = re.compile(r"[ \t\f]*(?:@|(?:async|class|def|for|if|match|try|while|with)\b)")


def with_item(code: str, item: object, language: str) -> str:
    """Return code that begins by assigning the item.

    Args:
        code: of the guest.
        item: JSON values.
        language: what the code is written in.

    Raises:
        RemoteProtocolError: the item is no JSON value, or nobody knows how the language assigns.
    """
    try:
        text = msgspec.json.encode(item).decode()
        literal = repr(msgspec.json.decode(text)) if language == "python" else text
    except (TypeError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"not JSON: {error}", field="inputs", allowed="JSON values") from error
    if language == "python":
        return f"item = {literal}{chr(10) if _COMPOUND.match(code) else '; '}{code}"
    if language == "javascript":
        return f"const item = {text}; {code}"
    if language == "shell":
        return f"item={shlex.quote(text)}; {code}"
    reason = f"nobody knows how to give {language[:40]!r} its item"
    raise RemoteProtocolError(reason, field="language", allowed="python, javascript, shell")
