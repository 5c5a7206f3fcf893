"""The pools of a worker: which zygote a session gets its sandbox from.

Each profile has its own. What a zygote has imported every one of its forks pays for, used or not: page tables to copy,
pages to fault in. So a profile may have several. The *bare* one has next to nothing loaded and suits the shell's
scripts, and Python that imports nothing and awaits only tools, as much of what agents send. The *full* one has what the
profile preloads, which then costs nothing to import. Choosing wrong between these two costs a few milliseconds, never a
failure: either sandbox can run anything. Code in *JavaScript* runs in the third only, where the engine is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from enclave_protocol import SandboxError

from .profiles import ProfileError
from .zygote import preload
from .zygote.awaits import only_tools

if TYPE_CHECKING:
    from collections.abc import Mapping

    from enclave_protocol.languages import Language

    from .offers import Kind, Offer
    from .pool import Pool, Taker

_FULL_HINTS = ("import", "async")
"""Any of these anywhere in the code, be it in a string, chooses the full pool: looking closer would be parsing."""


class ProfilePools:
    """The pools of one profile, by kind: at least those that its languages need."""

    def __init__(self, offer: Offer, pools: Mapping[Kind, Pool]) -> None:
        self.offer = offer
        self.all = tuple(pools.values())
        self._pools = pools

    def __repr__(self) -> str:
        return f"<ProfilePools {self.offer.profile.name} {self.all!r}>"

    async def start(self) -> None:
        """Start its pools; raises what `Pools.start` raises."""
        results = await asyncio.gather(*(pool.start() for pool in self.all), return_exceptions=True)
        for failure in filter(None, results):
            if isinstance(failure, SandboxError) and failure.step.startswith(preload.STEP):
                # The profile's fault, not the host's.
                name = self.offer.profile.name
                raise ProfileError(f"profile {name!r}: {failure.step}: {failure.reason}") from failure
            raise failure

    def pool_for(self, language: Language, code: str) -> Pool:
        """Return the pool that suits `code`."""
        return self._pools[self._kind_for(language, code)]

    def _kind_for(self, language: Language, code: str) -> Kind:
        if language == "javascript":
            return "javascript"
        awaits_more = "await" in code and not only_tools(code)
        full = language == "python" and (awaits_more or any(hint in code for hint in _FULL_HINTS))
        return "full" if full or "bare" not in self._pools else "bare"


class Pools:
    """Every pool of a worker, started and stopped as one."""

    def __init__(self, profiles: Mapping[str, ProfilePools]) -> None:
        self._profiles = profiles
        self.offers: dict[str, Offer] = {name: pools.offer for name, pools in profiles.items()}
        """What sessions may ask for, by name."""
        self._all = [pool for pools in profiles.values() for pool in pools.all]

    def __repr__(self) -> str:
        return f"<Pools {list(self._profiles.values())!r}>"

    @property
    def ready(self) -> bool:
        """Whether each pool has a warm sandbox, or needs none."""
        return all(pool.ready for pool in self._all)

    @property
    def warm(self) -> int:
        """Sandboxes that wait for code."""
        return sum(pool.warm for pool in self._all)

    @property
    def live(self) -> int:
        """Sandboxes that exist, taken ones included."""
        return sum(pool.live for pool in self._all)

    @property
    def sandboxes(self) -> dict[str, int]:
        """How many there are: `warm` wait for code, `starting` are being made, `taken` have a session or are dying."""
        warm, starting = self.warm, sum(pool.starting for pool in self._all)
        return {"warm": warm, "starting": starting, "taken": self.live - warm - starting}

    async def start(self) -> None:
        """Start all, or leave none running.

        Raises:
            SandboxError: names the step that failed.
            ProfileError: what a profile preloads can't be.
        """
        results = await asyncio.gather(*(pools.start() for pools in self._profiles.values()), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            await self.stop()
            raise failures[0]

    async def stop(self) -> None:
        """End every sandbox; returns when they are gone."""
        await asyncio.gather(*(pool.stop() for pool in self._all))

    def take(self, taker: Taker, profile: str, language: Language, code: str) -> None:
        """Give `taker` a sandbox of `profile` that suits `code`: a warm one at once, else one as soon as it is made."""
        self._profiles[profile].pool_for(language, code).take(taker)

    def forget(self, taker: Taker) -> None:
        """Stop looking for a sandbox for `taker`."""
        for pool in self._all:
            pool.forget(taker)
