"""What each tenant may use, and has used. Pure: no clock, no I/O; every method is one step.

Theory of operation. `Account.admit` decides and reserves at once, so two requests can never both get the last place.
Rates are counted over a window that slides in slices of a sixtieth: what was used within a slice counts until the
whole slice is older than the window. So never more than the quota is used in any minute (hour), at the price of
counting up to one slice too long; and the wait that a refusal names is exact, if nobody else of the tenant comes first.

CPU time is known when a session has ended, so it is paid afterwards: a tenant may overdraw by what its live sessions
use, each at most the worker's CPU limit, and starts no more until the hour has moved on.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import msgspec

from enclave_protocol import EnclaveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MINUTE_S = 60.0
HOUR_S = 3600.0
SLICES = 60
FULL_RETRY_S = 1.0
"""When to ask again for a session's place, at least, and as long as nobody knows how long sessions take,"""
FULL_RETRY_MAX_S = 60.0
"""and at most."""

QuotaName = Literal["concurrentSessions", "sessionsPerMinute", "cpuSecondsPerHour", "toolCallsPerMinute"]
Amount = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class Quotas(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a tenant may use; None is without end."""

    concurrent_sessions: Amount | None = None
    """Sessions that have not ended."""
    sessions_per_minute: Amount | None = None
    """Sessions begun in any 60 seconds."""
    cpu_seconds_per_hour: Amount | None = None
    """Processor time of sessions that ended in any 3,600 seconds."""
    tool_calls_per_minute: Amount | None = None
    """Tool calls in any 60 seconds, whoever answers them."""


class QuotaExceeded(EnclaveError):  # noqa: N818 - a fact about the tenant
    """The tenant has used up a quota.

    Attributes:
        quota: which one.
        limit: how much it is.
        used: how much of it is used.
        retry_after_s: when there is room again.
    """

    def __init__(self, tenant: str, quota: QuotaName, limit: int, used: int, retry_after_s: float) -> None:
        self.quota = quota
        self.limit = limit
        self.used = used
        self.retry_after_s = retry_after_s
        super().__init__(f"tenant {tenant}: {used} of {limit} {quota} used; try again in {retry_after_s:.3g} s")


class Usage(msgspec.Struct, frozen=True):
    """How much of a quota is used."""

    quota: QuotaName
    used: int
    limit: int | None = None
    """None: without end."""


class Window:
    """The sum of what was added in the last `length_s` seconds. Times never go back."""

    __slots__ = ("_length_s", "_slice_s", "_slices", "_sum")

    def __init__(self, length_s: float) -> None:
        self._length_s = length_s
        self._slice_s = length_s / SLICES
        self._slices: deque[tuple[int, int]] = deque()  # (number of the slice, amount), at most SLICES + 2
        self._sum = 0

    def used(self, now: float) -> int:
        """Return the sum."""
        while self._slices and self._leaves(self._slices[0][0]) <= now:
            self._sum -= self._slices.popleft()[1]
        return self._sum

    def add(self, now: float, amount: int = 1) -> None:
        """Count something; a negative amount takes back what was added at the same time."""
        number = int(now // self._slice_s)
        if self._slices and self._slices[-1][0] == number:
            self._slices.append((number, self._slices.pop()[1] + amount))
        else:
            self._slices.append((number, amount))
        self._sum += amount
        self.used(now)

    def wait_s(self, now: float, most: int) -> float:
        """Return the time until the sum is at most `most`; all of the window if it never will be."""
        left = self.used(now)
        for number, amount in self._slices:
            left -= amount
            if left <= most:
                return self._leaves(number) - now
        return self._length_s

    def _leaves(self, number: int) -> float:
        return (number + 1) * self._slice_s + self._length_s


class Account:
    """One tenant's use of what it may use."""

    __slots__ = ("_calls", "_cpu_ms", "_sessions", "active", "quotas", "tenant")

    def __init__(self, tenant: str, quotas: Quotas) -> None:
        self.tenant = tenant
        self.quotas = quotas
        self.active = 0
        """Sessions that have not ended."""
        self._sessions = Window(MINUTE_S)
        self._calls = Window(MINUTE_S)
        self._cpu_ms = Window(HOUR_S)

    def admit(self, now: float, session_s: Callable[[], float | None] = lambda: None) -> None:
        """Take a place for a session; raises QuotaExceeded, and then took none.

        Args:
            now: the time.
            session_s: asked how long a session takes, on average, if that is known.
        """
        self.check(now, session_s)
        self._sessions.add(now)
        self.active += 1

    def check(self, now: float, session_s: Callable[[], float | None] = lambda: None) -> None:
        """Raise QuotaExceeded if there is no place for a session."""
        quotas = self.quotas
        if quotas.concurrent_sessions is not None and self.active >= quotas.concurrent_sessions:
            each_s = session_s() or 0.0
            wait_s = min(FULL_RETRY_MAX_S, max(FULL_RETRY_S, each_s / max(1, self.active)))
            self._refuse("concurrentSessions", quotas.concurrent_sessions, self.active, wait_s)
        self._check("sessionsPerMinute", self._sessions, quotas.sessions_per_minute, now)
        self._check("cpuSecondsPerHour", self._cpu_ms, quotas.cpu_seconds_per_hour, now, unit=1000)

    def take_over(self) -> None:
        """Count a session that was admitted by an earlier broker."""
        self.active += 1

    def give_back(self, now: float) -> None:
        """Undo an `admit` of the same time, since nobody could take the session."""
        self._sessions.add(now, -1)
        self.active -= 1

    def ended(self, now: float, cpu_ms: float) -> None:
        """Free a session's place, and pay for its processor time."""
        self.active -= 1
        if cpu_ms > 0:
            self._cpu_ms.add(now, round(cpu_ms))

    def call_tool(self, now: float) -> None:
        """Count a tool call; raises QuotaExceeded, and then did not."""
        self._check("toolCallsPerMinute", self._calls, self.quotas.tool_calls_per_minute, now)
        self._calls.add(now)

    def usage(self, now: float) -> list[Usage]:
        """Return what is used of each quota."""
        quotas = self.quotas
        return [
            Usage("concurrentSessions", self.active, quotas.concurrent_sessions),
            Usage("sessionsPerMinute", self._sessions.used(now), quotas.sessions_per_minute),
            Usage("cpuSecondsPerHour", self._cpu_ms.used(now) // 1000, quotas.cpu_seconds_per_hour),
            Usage("toolCallsPerMinute", self._calls.used(now), quotas.tool_calls_per_minute),
        ]

    def idle(self, now: float) -> bool:
        """Whether forgetting the account would forget nothing."""
        return not (self.active or any(w.used(now) for w in (self._sessions, self._calls, self._cpu_ms)))

    def _check(self, quota: QuotaName, window: Window, limit: int | None, now: float, unit: int = 1) -> None:
        if limit is not None and window.used(now) >= limit * unit:
            wait_s = window.wait_s(now, limit * unit - 1)
            self._refuse(quota, limit, window.used(now) // unit, wait_s)

    def _refuse(self, quota: QuotaName, limit: int, used: int, retry_after_s: float) -> NoReturn:
        raise QuotaExceeded(self.tenant, quota, limit, used, retry_after_s)


class Ledger:
    """Every tenant's account. A tenant without quotas of its own has none: nothing ends for it."""

    def __init__(self) -> None:
        self._quotas: Mapping[str, Quotas] = {}
        self._accounts: dict[str, Account] = {}

    def configure(self, quotas: Mapping[str, Quotas]) -> None:
        """Set every tenant's quotas anew. What is used stays used, and live sessions live on."""
        self._quotas = quotas
        for account in self._accounts.values():
            account.quotas = quotas.get(account.tenant, Quotas())

    def account(self, tenant: str) -> Account:
        """Return a tenant's account, a new one if need be. Tenants come from the keys, so there are only so many."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = Account(tenant, self._quotas.get(tenant, Quotas()))
        return account

    def tidy(self, now: float, known: frozenset[str]) -> list[str]:
        """Forget the accounts of tenants that are not known any more, once they are idle; returns whose."""
        gone = [name for name, account in self._accounts.items() if name not in known and account.idle(now)]
        for name in gone:
            del self._accounts[name]
        return gone

    def __iter__(self) -> Iterator[Account]:
        """Yield every account."""
        return iter(self._accounts.values())
