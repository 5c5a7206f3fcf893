"""Which revision of the link a broker and a worker speak.

Events have a version of their own, which every client sees (`PROTOCOL_VERSION`). A revision is about the link alone:

1. A session ends with its connection. No `welcome`.
2. The worker keeps events until they are acknowledged, and sessions for as long as their lease when their connection
   is cut: `welcome`, `ack`, `attach`, `drain`, and in `hello` the `instance` and the `sessions` to attach to. It holds
   for connections on which a `welcome` came; on others a worker does as in 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .messages import Hello

OLDEST_REVISION = 1
NEWEST_REVISION = 2
RESUMING_REVISION = 2
"""The first in which sessions outlive their connection."""


def common_revision(hello: Hello) -> int | None:
    """Return the newest revision that the worker and this program both speak; None if there is none."""
    newest = min(NEWEST_REVISION, hello.max_revision)
    return newest if newest >= max(OLDEST_REVISION, hello.min_revision) else None
