"""The secrets and keys that a broker is given: in files, or in the environment, never on the command line."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from enclave_protocol.credentials import WORKER_TOKEN_VARIABLE, parse_secrets

from .gate import Gate
from .keys import MAX_BOOK_BYTES, Book, parse_book
from .tokens import Signer

if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_broker.config import BrokerConfig
    from enclave_broker.metrics import Metrics

log = logging.getLogger("enclave.broker.access")

KEYS_VARIABLE = "ENCLAVE_KEYS"
TOKEN_SECRETS_VARIABLE = "ENCLAVE_TOKEN_SECRETS"  # noqa: S105 - the name of a variable
T = TypeVar("T")

SECRET_VARIABLES = (TOKEN_SECRETS_VARIABLE, WORKER_TOKEN_VARIABLE)
"""Environment variables that hold secrets. A program forgets them once read: what it starts must not inherit them."""

MAX_SECRETS_BYTES = 64 * 1024


def load_gate(config: BrokerConfig) -> Gate:
    """Return the gate that configuration and environment describe; raises ValueError saying what is wrong."""
    book = load_book(config.keys_file)
    return Gate(book, Signer(load_secrets(config.token_secrets_file, TOKEN_SECRETS_VARIABLE)))


def load_book(path: str) -> Book | None:
    """Return the keys of a file, else those in `ENCLAVE_KEYS`; None if there is neither. Raises ValueError."""
    text, where = _text(path, KEYS_VARIABLE, MAX_BOOK_BYTES)
    return None if text is None else _parsed(parse_book, text, where)


def load_secrets(path: str, variable: str) -> tuple[str, ...]:
    """Return the secrets of a file, else those in a variable; none if there is neither. Raises ValueError."""
    text, where = _text(path, variable, MAX_SECRETS_BYTES)
    return () if text is None else _parsed(parse_secrets, text, where)


def _text(path: str, variable: str, max_bytes: int) -> tuple[str | None, str]:
    if not path:
        return os.environ.get(variable) or None, variable
    try:
        with Path(path).open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise ValueError(f"{path}: larger than {max_bytes} bytes")
    try:
        return data.decode(), path
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8") from None


def _parsed(parse: Callable[[str], T], text: str, where: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


class KeysWatch:
    """Notices that the keys file has changed, and has the gate use it.

    A file that can't be read leaves the old keys in force, says so in the log, and sets `enclave_keys_stale`.
    """

    def __init__(self, path: str, gate: Gate, metrics: Metrics) -> None:
        self._path = path
        self._gate = gate
        self._metrics = metrics
        self._seen = self._look()

    def poll(self) -> None:
        """Reload the file if it is not what it was."""
        if self._path and self._look() != self._seen:
            self.reload()

    def reload(self) -> None:
        """Reload the file, if there is one."""
        if not self._path:
            return
        self._seen = self._look()
        try:
            book = load_book(self._path)
            assert book is not None, "a path was given"
        except ValueError as error:
            self._metrics.keys_stale.set(1)
            log.error("the keys were not reloaded, the old ones stay in force: %s", error)  # noqa: TRY400 - said
            return
        self._metrics.keys_stale.set(0)
        self._gate.reload(book)
        log.info("keys reloaded: %d keys", len(book.keys))

    def _look(self) -> tuple[int, int, int, int] | None:
        try:
            status = Path(self._path).stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
