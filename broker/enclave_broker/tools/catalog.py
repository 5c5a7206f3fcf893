"""The catalogue of tools, as clients are told of it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType

from enclave_protocol.events import CatalogChangedPayload

if TYPE_CHECKING:
    from collections.abc import Collection

    from .registry import CatalogChange, ToolRegistry


class Action(msgspec.Struct, rename="camel", omit_defaults=True):
    """One tool."""

    name: str
    service: str
    """Where it comes from: `python`, `http`, or the name of a source."""
    input_schema: dict[str, Any]
    """JSON Schema of its arguments, an object's."""
    description: str | UnsetType = UNSET


class Service(msgspec.Struct, rename="camel"):
    """One source of tools."""

    name: str
    spec_url: str
    """Where its description lies; empty if nowhere."""
    last_updated: int
    """When its tools last changed, in milliseconds since the epoch."""
    action_count: int
    healthy: bool
    """False after three failed looks at it in a row: its tools are offered as they last were."""


class Catalog(msgspec.Struct, rename="camel"):
    """Every tool that guests may call."""

    actions: list[Action]
    services: list[Service]
    version: str
    """Another one whenever a tool is; `empty` without any."""


def describe(registry: ToolRegistry, *, unwell: Collection[str] = (), service: str | None = None) -> Catalog:
    """Return the catalogue.

    Args:
        registry: the tools.
        unwell: sources that can't be relied on at the moment.
        service: only this one's tools; all if None.
    """
    actions = [
        Action(
            name=tool.name,
            service=tool.service,
            input_schema=tool.input_schema,
            description=tool.description or UNSET,
        )
        for tool in registry.tools()
        if service in {None, tool.service}
    ]
    services = [
        Service(
            name=source.name,
            spec_url=source.spec_url,
            last_updated=round(source.updated_at * 1000),
            action_count=len(source.tools),
            healthy=source.name not in unwell,
        )
        for source in registry.sources()
        if service in {None, source.name}
    ]
    return Catalog(actions=actions, services=services, version=registry.version)


def news_of(change: CatalogChange) -> CatalogChangedPayload:
    """Return what live sessions are told of a change."""
    return CatalogChangedPayload(
        version=change.version, added_actions=list(change.added), removed_actions=list(change.removed)
    )


def merged(older: CatalogChangedPayload | None, newer: CatalogChangedPayload) -> CatalogChangedPayload:
    """Return two changes, one after the other, as one."""
    if older is None:
        return newer
    added = (set(older.added_actions) - set(newer.removed_actions)) | (
        set(newer.added_actions) - set(older.removed_actions)
    )
    removed = (set(older.removed_actions) - set(newer.added_actions)) | (
        set(newer.removed_actions) - set(older.added_actions)
    )
    return CatalogChangedPayload(version=newer.version, added_actions=sorted(added), removed_actions=sorted(removed))
