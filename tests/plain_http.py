"""HTTP without TLS, for clients that tests make by the thousand."""

from __future__ import annotations

import ssl

NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For httpx as `verify`: else each client reads all authorities that the machine trusts, for 25 ms of a processor."""
