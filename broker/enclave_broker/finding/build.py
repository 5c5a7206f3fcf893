"""From a broker's settings to where it looks for workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enclave_broker.channels import RuntimeDial

from .dns_source import DnsSource
from .sources import FileSource, FixedSource, fixed_urls
from .urls import named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client import Gauge

    from enclave_broker.channels import Runtime
    from enclave_broker.config import BrokerConfig

    from .sources import Connecting, Source


def make_sources(
    config: BrokerConfig, connecting: Connecting, runtimes: Sequence[Runtime], *, stale: Gauge
) -> list[Source]:
    """Return the sources that the settings name.

    Args:
        config: the settings.
        connecting: how workers are dialled.
        runtimes: workers in this process.
        stale: says of which source the last list stays in force.

    Raises:
        ValueError: a worker's URL is none, or can't be dialled like this.
    """
    fixed = fixed_urls((url for url in config.workers if named(url) is None), connecting)
    fixed |= {f"embedded:{i}": RuntimeDial(runtime) for i, runtime in enumerate(runtimes)}
    sources: list[Source] = [FixedSource(fixed)]
    sources += [
        DnsSource(
            found,
            place,
            connecting,
            servers=config.dns_servers,
            every_s=config.dns_every_s,
            timeout_s=config.dns_timeout_s,
            stale=stale,
        )
        for place in dict.fromkeys(config.workers)
        if (found := named(place)) is not None
    ]
    if config.workers_file:
        every_s = config.workers_file_look_s
        sources.append(FileSource(config.workers_file, connecting, stale=stale, every_s=every_s))
    return sources
