"""Asks a broker for `/fleet` and `/metrics`, over a connection that is kept."""

from __future__ import annotations

import http.client
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

import msgspec

from .sample import Fleet, Sample, read_metrics

TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 16 * 1024 * 1024


class NoAnswer(Exception):  # noqa: N818 - what is shown, and tried again
    """The broker does not answer, or not sensibly; it may do so later."""


class Refused(Exception):  # noqa: N818 - what the broker said
    """The broker answers, and will not tell."""


class Source:
    """One broker.

    Args:
        url: its address.
        api_key: shown to it; empty for none.

    Raises:
        ValueError: the address is none.
    """

    def __init__(self, url: str, api_key: str) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0 or "@" in parts.netloc:
            raise ValueError(f"{url}: give an address such as http://127.0.0.1:3000")
        self.url = url.rstrip("/")
        self._path = parts.path.rstrip("/")
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(parts.hostname, port, timeout=TIMEOUT_S, context=context)
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, port, timeout=TIMEOUT_S)

    def sample(self) -> Sample:
        """Ask; raises NoAnswer or Refused."""
        fleet = _decode(self._get("/fleet"))
        return Sample(time.monotonic(), fleet, read_metrics(self._get("/metrics").decode("utf-8", "replace")))

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def _get(self, path: str) -> bytes:
        try:
            return self._asked(path)
        except http.client.RemoteDisconnected:
            # It closed the connection that we kept, and may well be there: once more, with a new one.
            self._connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        try:
            return self._asked(path)
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error

    def _asked(self, path: str) -> bytes:
        self._connection.request("GET", self._path + path, headers=self._headers)
        response = self._connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES)
        if response.status == http.HTTPStatus.OK:
            return body
        if response.status in {401, 403}:
            raise Refused(
                f"the broker wants a key with the scope metrics:read (HTTP {response.status}): ENCLAVE_API_KEY"
            )
        if response.status == http.HTTPStatus.NOT_FOUND:
            raise Refused("what answers there has no /fleet: is it an enclave-broker, and as new as this program?")
        raise NoAnswer(f"HTTP {response.status} {response.reason}")

    def _lost(self, error: Exception) -> NoAnswer:
        self._connection.close()
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return NoAnswer(words or type(error).__name__)


def _decode(body: bytes) -> Fleet:
    try:
        fleet: Any = msgspec.json.decode(body, type=Fleet)
    except msgspec.MsgspecError as error:
        raise NoAnswer(f"/fleet makes no sense: {error}") from error
    return fleet  # type: ignore[no-any-return]
