"""The libraries' pages are complete; their examples are run by `test_examples`."""

from __future__ import annotations

import enclave_client
from enclave_client import AsyncClient
from tests.docs.pages import ROOT


def test_the_page_names_everything_the_library_offers() -> None:
    """What is public is documented, one way or another; types that only travel as values are."""
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    offered = ("create_runtime_worker", "create_session_executor", "create_memory_channel_pair")
    for name in (*offered, "create_websocket_channel", "execute_sync", "get_stats", "get_state", "ExecutionResult"):
        assert name in page


def test_the_page_names_everything_the_client_library_offers() -> None:
    page = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
    values = {"AnyEvent", "AsyncSession", "Failure", "MapItem", "Session", "Stats"}
    for name in (*enclave_client.__all__, *(name for name in vars(AsyncClient) if not name.startswith("_"))):
        assert name in values or name in page, name
