"""What a session of `python-data`, with numpy, pandas and matplotlib loaded, costs beside one with nothing loaded."""

from __future__ import annotations

import contextlib
import importlib.metadata
from typing import TYPE_CHECKING

from enclave_client.fleet import FleetSpec, running_fleet

from . import alive, footprint
from .alive import Alive, NotAliveError
from .figures import Figure, at_most, percentile, spread
from .load import SUM, Load, create_body
from .phases import pids

if TYPE_CHECKING:
    from .phases import Plan

PROFILE = "python-data"
PACKAGES = ("numpy", "pandas", "matplotlib")
BLOCK_SESSIONS = 25
MAX_RATIO_TO_LEAN = 2.0
SESSIONS = 100
SESSIONS_A_ROUND = 10
SPARE_SLOTS = 16
MAX_EACH_MB = 8.0


def missing() -> str:
    """Return which of the packages are not installed, in words; empty if all are."""
    return ", ".join(name for name in PACKAGES if not _is_installed(name))


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


async def data_profile(load: Load, plan: Plan) -> list[Figure]:
    """Measure one session at a time in `python-data` and on `load`'s fleet in `python` by turns, and many that wait."""
    count = min(SESSIONS, SESSIONS_A_ROUND * plan.rounds)
    took_ms: list[float] = []
    lean_ms: list[float] = []
    held_mb = 0.0
    spec = FleetSpec(workers=1, max_sessions=count + SPARE_SLOTS, profiles=(PROFILE,), tools=(alive.TOOLS,))
    async with running_fleet(spec, lambda *_: None) as fleet:
        own = Load(fleet.url)
        try:
            await own.one_by_one(create_body(SUM, profile=PROFILE), BLOCK_SESSIONS)  # to warm up
            for _ in range(plan.rounds):
                took_ms += await own.one_by_one(create_body(SUM, profile=PROFILE), BLOCK_SESSIONS)
                lean_ms += await load.one_by_one(create_body(SUM), BLOCK_SESSIONS)
            _, (worker,) = pids(fleet)
            # If one of them fails, that is counted, and the memory of the others says nothing.
            with contextlib.suppress(NotAliveError):
                async with Alive(own, worker, profile=PROFILE) as sessions:
                    await sessions.make(count)
                    held_mb = footprint.worker_mb(worker)
        finally:
            load.absorb(own)
    return [_latency(took_ms, lean_ms), *([_memory(count, held_mb)] if held_mb else [])]


def _latency(took_ms: list[float], lean_ms: list[float]) -> Figure:
    p50, lean = percentile(took_ms, 50), percentile(lean_ms, 50)
    return at_most(
        "data_p50",
        f"a session in {PROFILE}, p50",
        p50,
        "ms",
        MAX_RATIO_TO_LEAN * lean,
        target=f"at most {MAX_RATIO_TO_LEAN:g} times lean = {MAX_RATIO_TO_LEAN * lean:.2f}",
        compared_with=f"the same with nothing loaded: {lean:.2f} ms, so {p50 / lean:.2f} times that",
        detail={"ratioToLean": round(p50 / lean, 3), "data": spread(took_ms), "lean": spread(lean_ms)},
    )


def _memory(count: int, held_mb: float) -> Figure:
    said = f"{held_mb:.0f} MB in all, of worker, zygote and {count} sessions that wait for a tool"
    title = f"each of {count} in {PROFILE}, PSS with worker"
    return at_most("data_pss", title, held_mb / count, "MB", MAX_EACH_MB, compared_with=said)
