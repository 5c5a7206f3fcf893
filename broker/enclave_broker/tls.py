"""Certificates: the broker's own, for its clients, and what it shows to and wants of workers."""

from __future__ import annotations

import ssl


def check_server_files(cert: str, key: str) -> None:
    """Raise ValueError unless the broker can serve TLS with these files."""
    load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert, key, names=("tls_cert", "tls_key"))


def worker_context(ca: str, cert: str, key: str) -> ssl.SSLContext | None:
    """Return how `wss://` links are made; None leaves it to the system's own authorities.

    Args:
        ca: authorities that a worker's certificate must come from, instead of the system's.
        cert: our certificate, for workers that want one.
        key: its key.

    Raises:
        ValueError: a file can't be used; it says which.
    """
    if not (ca or cert or key):
        return None
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"worker_tls_ca {ca}: {_reason(error)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are ours
    if cert or key:
        load_chain(context, cert, key, names=("worker_tls_cert", "worker_tls_key"))
    return context


def load_chain(context: ssl.SSLContext, cert: str, key: str, *, names: tuple[str, str]) -> None:
    """Load a certificate and its key; raises ValueError naming the settings."""
    if not (cert and key):
        raise ValueError(f"{names[0]} and {names[1]} belong together: give both")
    try:
        # A password given, if a wrong one, since OpenSSL would ask for it on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{names[0]} {cert}, {names[1]} {key}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"not what it should be: {error.reason or 'unreadable, or encrypted with a password'}"
    return error.strerror or str(error)
