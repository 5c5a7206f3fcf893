"""Workers behind a name in DNS, which is resolved again and again.

Every address of the name is a worker, or every server of its SRV records, whatever their priority and weight: sessions
are spread by free slots. A name that does not exist or has no records is taken for trouble, as no answer is: a
nameserver that has just started, or a Service whose Pods are all unready, must not be the end of links that work. Of
a name whose addresses of one kind could not be had, nobody is missing until they can.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from .sources import Connecting, Unreadable, WatchedSource
from .urls import Named, authority, canonical, check_worker_url, parse_server

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dns.asyncresolver import Resolver
    from prometheus_client import Gauge

    from enclave_broker.channels import Dial


class DnsSource(WatchedSource):
    """The workers behind one name.

    Args:
        named: what is asked about.
        place: the same as it was written down.
        connecting: how they are dialled.
        servers: nameservers, `address` or `address:port`; none for those of the system.
        every_s: how often they are asked.
        timeout_s: longest wait for an answer.
        stale: says whether the last answer was none.
    """

    def __init__(
        self,
        named: Named,
        place: str,
        connecting: Connecting,
        *,
        servers: Sequence[str],
        every_s: float,
        timeout_s: float,
        stale: Gauge,
    ) -> None:
        super().__init__(place, every_s=every_s, stale=stale)
        self._named = named
        self._connecting = connecting
        self._servers = [parse_server(server) for server in servers]
        self._timeout_s = timeout_s

    async def look(self) -> Mapping[str, Dial] | None:
        """Resolve the name; raises Unreadable."""
        kinds = ("SRV",) if self._named.finder == "srv" else ("A", "AAAA")
        answers = await asyncio.gather(*(self._ask(kind) for kind in kinds))
        found: dict[str, Dial] = {}
        for url in (url for urls, _ in answers for url in urls):
            found.setdefault(canonical(url), self._dial(url))
        troubles = [trouble for _, trouble in answers if trouble]
        if troubles:
            raise Unreadable(", ".join(dict.fromkeys(troubles)), found)
        return found

    async def _ask(self, kind: str) -> tuple[list[str], str]:
        """Return the URLs that the records of a kind lead to, and why they may not be all."""
        # Loaded here: it takes 70 ms, and most brokers don't need it.
        import dns.exception  # noqa: PLC0415
        import dns.resolver  # noqa: PLC0415

        try:
            answer = await self._resolver().resolve(self._named.host, kind, search=True, raise_on_no_answer=False)
            return [self._url(record) for record in answer.rrset or ()], ""
        except dns.resolver.NXDOMAIN:
            return [], "no such name"
        except (dns.exception.DNSException, OSError, ValueError) as error:
            return [], f"{kind}: {str(error).rstrip('.') or type(error).__name__}"

    def _resolver(self) -> Resolver:
        import dns.asyncresolver  # noqa: PLC0415 - as above
        import dns.nameserver  # noqa: PLC0415

        # A new one each time: the system's nameservers change.
        resolver = dns.asyncresolver.Resolver(configure=not self._servers)
        if self._servers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in self._servers]
        resolver.lifetime = self._timeout_s
        return resolver

    def _url(self, record: Any) -> str:
        """Return the URL that a record leads to; raises ValueError for a host that none can have."""
        named = self._named
        if named.finder == "srv":
            host, port = record.target.to_text(omit_final_dot=True), record.port
        else:
            host, port = record.address, named.port
        return check_worker_url(f"{named.scheme}://{authority(host, port)}{named.path}")

    def _dial(self, url: str) -> Dial:
        # An address has no certificate: the name that led to it has.
        by_name = self._named.finder == "dns" and self._named.scheme == "wss"
        return self._connecting.dial(url, certified_as=self._named.host if by_name else "")
