"""Secrets: handed to tools by name, and taken out of everything that leaves the broker on a tool's account.

Theory of operation. A tool names the secrets it needs; their values come from the environment of the broker
(`ENCLAVE_SECRET_<NAME>`), from a file or directory, or from the program that embeds the broker. They reach the tool in
`ToolContext.secrets`, and nobody else.

A tool or the service behind it may still let one slip: an echoed header, an error message with the whole request in
it. So what a call gives back (its result, its error's code and message), its audit line and the broker's log are
searched for every secret there is, in the spellings of `spellings`, and each occurrence is replaced by
`[secret:NAME]`. This mends accidents. It is no defence against a tool that gives a secret away on purpose, or that can
be talked into it: encrypted, compressed, reversed, split, or in any encoding that is not of the list, it passes.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import msgspec

from enclave_protocol import Code

from .tool import ToolFailure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping
    from pathlib import Path

ENVIRONMENT_PREFIX = "ENCLAVE_SECRET_"
MIN_SECRET_CHARS = 6
"""A shorter one would be found in ordinary text, and can be guessed."""
MAX_SECRET_CHARS = 16_384

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class Secrets:
    """The secrets of one broker.

    Args:
        values: by name.

    Attributes:
        scrubber: what takes them out of text.

    Raises:
        ValueError: a name is none, or a value is too short or too long to be looked for; never quotes a value.
    """

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = dict(values or {})
        for name, value in self._values.items():
            _check(name, value)
        self.scrubber = Scrubber(self._values)

    def names(self) -> list[str]:
        """Return which there are."""
        return sorted(self._values)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return which of these there are not."""
        return [name for name in names if name not in self._values]

    def pick(self, tool_name: str, names: Iterable[str]) -> dict[str, str]:
        """Return these by name; raises ToolFailure, `SECRET_ERROR`, if one is not there."""
        wanted = tuple(names)
        if lacking := self.missing(wanted):
            words = ", ".join(map(repr, lacking))
            raise ToolFailure(
                Code.SECRET_ERROR, f"{tool_name} needs the secret {words}, which this broker was not given"
            )
        return {name: self._values[name] for name in wanted}

    def __repr__(self) -> str:
        return f"<Secrets {', '.join(self.names()) or 'none'}>"


def take_from_environment(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Take every `ENCLAVE_SECRET_<NAME>` out of an environment, so that programs started later do not inherit them."""
    found = [key for key in environ if key.startswith(ENVIRONMENT_PREFIX)]
    return {key.removeprefix(ENVIRONMENT_PREFIX): environ.pop(key) for key in found}


def read_secrets(path: Path) -> dict[str, str]:
    """Read secrets from a JSON file, an object of texts; or from a directory, one file for each.

    In a directory (as Docker and Kubernetes mount them) files whose name begins with a dot are skipped, and one line
    break at a value's end is not part of it.

    Raises:
        ValueError: the file can't be read or is something else; never quotes what is in it.
    """
    try:
        if path.is_dir():
            files = [entry for entry in sorted(path.iterdir()) if entry.is_file() and not entry.name.startswith(".")]
            return {entry.name: entry.read_text().removesuffix("\n").removesuffix("\r") for entry in files}
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except OSError as error:
        raise ValueError(f"secrets {path}: {error.strerror or type(error).__name__}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # Without its cause, whose words may quote the file.
        raise ValueError(f"secrets {path}: is no JSON object of names and texts, in UTF-8") from None


class Scrubber:
    """Takes secrets out of text.

    Args:
        secrets: values by name.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        marks = {spelling: f"[secret:{name}]" for name, value in secrets.items() for spelling in spellings(value)}
        # The longest first: one may be part of another.
        self._marks = sorted(marks.items(), key=lambda item: -len(item[0]))
        # As they stand in JSON text. A needle found there may still be none, such as the tail of an escape and what
        # follows it, so it only says that a closer look is due.
        self._needles = [msgspec.json.encode(spelling)[1:-1] for spelling, _ in self._marks]

    def clean(self, text: str) -> str:
        """Return `text` without secrets."""
        for spelling, mark in self._marks:
            if spelling in text:
                text = text.replace(spelling, mark)
        return text

    def clean_json(self, text: bytes) -> bytes:
        """Return JSON text without secrets, in its strings, its objects' names and its numbers.

        Raises:
            RecursionError: a secret is in it, and it is nested too deeply to be taken apart.
        """
        for needle in self._needles:
            if needle in text:
                return msgspec.json.encode(self._clean_value(msgspec.json.decode(text)))
        return text

    def _clean_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, list):
            return [self._clean_value(item) for item in value]
        if isinstance(value, dict):
            return {self.clean(key): self._clean_value(item) for key, item in value.items()}
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = str(value)
            cleaned = self.clean(text)
            return value if cleaned == text else cleaned
        return value


class ScrubbedFormatter(logging.Formatter):
    """Another formatter's lines without secrets: messages, exceptions and all.

    Args:
        inner: what makes the lines.
        scrubber: what cleans them.
    """

    def __init__(self, inner: logging.Formatter, scrubber: Scrubber) -> None:
        super().__init__()
        self._inner = inner
        self._scrubber = scrubber

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return self._scrubber.clean(self._inner.format(record))


def spellings(secret: str) -> set[str]:
    """Return the ways to write a secret that are looked for.

    As it is; inside a JSON or Python string, once or twice; in a URL or a form; in HTML; in hexadecimal; in Base64, of
    both alphabets, also when it is part of something longer, such as `user:secret`.
    """
    data = secret.encode()
    found = {secret, html.escape(secret), repr(secret)[1:-1], data.hex(), data.hex().upper()}
    once = _escaped(secret)
    found |= once
    found |= {twice for each in once for twice in _escaped(each)}
    for url in (quote(secret, safe=""), quote(secret), quote_plus(secret)):
        found |= {url, re.sub("%..", lambda match: match[0].lower(), url)}
    for before in range(3):
        found |= _base64_inside(data, before)
    return found


def _escaped(text: str) -> set[str]:
    forms = {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    return forms | {form.replace("/", "\\/") for form in forms}


def _base64_inside(data: bytes, before: int) -> set[str]:
    """Return the characters that `data` alone decides, when `before` bytes (modulo 3) come before it."""
    first = -(-before * 8 // 6)
    last = (before + len(data)) * 8 // 6
    padded = bytes(before) + data
    return {encode(padded)[first:last].decode() for encode in (base64.b64encode, base64.urlsafe_b64encode)}


def _check(name: str, value: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"secret {name!r}: the name has other characters than letters, digits and _, or too many")
    if not isinstance(value, str) or not MIN_SECRET_CHARS <= len(value) <= MAX_SECRET_CHARS:
        allowed = f"{MIN_SECRET_CHARS} to {MAX_SECRET_CHARS} characters"
        raise ValueError(f"secret {name!r}: is not text of {allowed}, so it can't be kept out of what tools say")
