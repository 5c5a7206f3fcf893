"""Who may connect to a worker: brokers that show the shared secret, or a certificate, or both if both are wanted.

Probes and metrics (`/healthz`, `/readyz`, `/metrics`) are for everybody who reaches the port: they name no session.
A certificate is therefore asked for in the handshake of TLS and demanded only for `/ws`, since the probes of an
orchestrator have none; one that is shown and is not of our authority ends the handshake at once.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

from enclave_protocol.credentials import WORKER_TOKEN_VARIABLE, bearer, is_loopback, is_one_of, parse_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .config import RuntimeConfig

log = logging.getLogger("enclave.worker")

SAY_EVERY_S = 10.0
"""A refusal is logged at most so often: whoever knocks must not fill the log."""
MAX_SECRETS_BYTES = 64 * 1024


class AccessError(ValueError):
    """The worker would be open to strangers, or a secret or certificate can't be used. The text says what to do."""


class Door:
    """Decides about connections. `tls` is what to listen with, None for plain.

    Args:
        secrets: any of them lets a broker in; none means that no secret is wanted.
        tls: certificates; None speaks in clear.
        wants_certificate: whether brokers must show one.
    """

    def __init__(
        self, secrets: Sequence[str] = (), tls: ssl.SSLContext | None = None, *, wants_certificate: bool = False
    ) -> None:
        self.tls = tls
        self.on_refused: Callable[[], object] = lambda: None
        """Called for each refusal."""
        self._secrets = tuple(secrets)
        self._wants_certificate = wants_certificate
        self._refused = 0
        self._said_s = -SAY_EVERY_S
        if tls is not None:
            tls.sslobject_class = _telling(self)

    @property
    def closed(self) -> bool:
        """Whether strangers are kept out."""
        return bool(self._secrets) or self._wants_certificate

    def misses(self, authorizations: Sequence[str], peer_certificate: object) -> str | None:
        """Return what a broker that wants in misses, None if nothing.

        Args:
            authorizations: its `Authorization` headers.
            peer_certificate: what it showed in the handshake, after it was checked; empty or None if nothing.
        """
        if self._wants_certificate and not peer_certificate:
            return "no certificate: the broker needs --worker-tls-cert and --worker-tls-key"
        if not self._secrets:
            return None
        if len(authorizations) != 1:
            return "no token: the broker needs --worker-token-file or ENCLAVE_WORKER_TOKEN"
        token = bearer(authorizations[0])
        if token is None or not is_one_of(token, self._secrets):
            return "another token than ours: --worker-token-file differs between broker and worker"
        return None

    def tell(self, peer: str, missing: str) -> None:
        """Count a refusal, and log it unless one was a moment ago."""
        self._refused += 1
        self.on_refused()
        now = time.monotonic()
        if now - self._said_s >= SAY_EVERY_S:
            self._said_s = now
            log.warning("refused a connection from %s: %s (%d refused so far)", peer, missing, self._refused)


def _telling(door: Door) -> type[ssl.SSLObject]:
    """Return what has the door tell of handshakes that fail, which the event loop keeps to itself."""

    class Telling(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise  # not failed: more is to come
            except ssl.SSLError as error:
                door.tell("somebody", f"the handshake of TLS failed: {error.reason or error}")
                raise

    return Telling


def open_door(config: RuntimeConfig) -> Door:
    """Return the door that a worker's configuration and environment describe; raises AccessError."""
    secrets = load_secrets(config.worker_token_file)
    tls = _context(config)
    door = Door(secrets, tls, wants_certificate=bool(config.tls_ca))
    if not (door.closed or config.insecure or is_loopback(config.host)):
        raise AccessError(
            f"listening on {config.host} would let everybody who reaches it run code: give the broker's secret with "
            "--worker-token-file, or --tls-ca, --tls-cert and --tls-key, listen on 127.0.0.1, or say --insecure where "
            "something else keeps strangers out"
        )
    return door


def load_secrets(path: str) -> tuple[str, ...]:
    """Return the secrets of a file, else those in `ENCLAVE_WORKER_TOKEN`, if any; raises AccessError."""
    where = path or WORKER_TOKEN_VARIABLE
    try:
        text = _read(path) if path else os.environ.get(WORKER_TOKEN_VARIABLE, "")
        return parse_secrets(text) if path or text else ()
    except OSError as error:
        raise AccessError(f"{where}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise AccessError(f"{where}: not UTF-8") from None
    except ValueError as error:
        raise AccessError(f"{where}: {error}") from error


def _read(path: str) -> str:
    with Path(path).open("rb") as file:
        return file.read(MAX_SECRETS_BYTES).decode()


def _context(config: RuntimeConfig) -> ssl.SSLContext | None:
    if not (config.tls_cert or config.tls_key or config.tls_ca):
        return None
    if not (config.tls_cert and config.tls_key):
        raise AccessError("tls_cert and tls_key belong together, and tls_ca needs both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are ours
    what = f"tls_cert {config.tls_cert}, tls_key {config.tls_key}"
    try:
        # A password given, if a wrong one, since OpenSSL would ask for it on the terminal.
        context.load_cert_chain(config.tls_cert, config.tls_key, password=lambda: "")
        if config.tls_ca:
            what = f"tls_ca {config.tls_ca}"
            context.load_verify_locations(config.tls_ca)
            context.verify_mode = ssl.CERT_OPTIONAL  # and demanded by `misses`
    except ssl.SSLError as error:
        raise AccessError(f"{what}: {error.reason or 'unreadable, or encrypted with a password'}") from error
    except OSError as error:
        raise AccessError(f"{what}: {error.strerror}") from error
    return context
