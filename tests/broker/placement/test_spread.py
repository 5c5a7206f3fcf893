"""Load is spread: with equal workers the busiest has at most 1.25 times the mean."""

from __future__ import annotations

import heapq
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_broker.placement import Place, Placer

SESSIONS = 1500
MOST = 1.25


def slot_seconds(workers: int, slots: int, load: float, seed: int) -> tuple[dict[str, float], dict[str, int]]:
    """Return how long each worker's slots were held, and how many sessions it had."""
    chance = random.Random(seed)
    placer = Placer(queue_size=10**6, queue_bytes=10**6, queue_wait_s=1e9)
    held = {f"w{i}": 0.0 for i in range(workers)}
    had = dict.fromkeys(held, 0)
    for name in held:
        placer.worker_up(name, max_sessions=slots, active=0, draining=False)
    lasts: dict[str, float] = {}
    ends: list[tuple[float, str]] = []

    def run(place: Place, now: float) -> None:
        held[place.worker] += lasts[place.session_id]
        had[place.worker] += 1
        heapq.heappush(ends, (now + lasts[place.session_id], place.session_id))

    now = 0.0
    for i in range(SESSIONS):
        now += chance.expovariate(load * workers * slots)
        while ends and ends[0][0] <= now:
            ended, session = heapq.heappop(ends)
            for place in placer.release(session):
                run(place, ended)
        lasts[f"s{i}"] = chance.uniform(0.1, 2.0)
        decision = placer.submit(f"s{i}", 1e9)
        if isinstance(decision, Place):
            run(decision, now)
    while ends:
        ended, session = heapq.heappop(ends)
        for place in placer.release(session):
            run(place, ended)
    return held, had


@settings(max_examples=40)
@given(workers=st.integers(2, 8), slots=st.integers(2, 16), load=st.floats(0.1, 1.5), seed=st.integers(0, 2**32))
def test_the_busiest_of_equal_workers_has_at_most_a_quarter_more_than_the_mean(
    workers: int, slots: int, load: float, seed: int
) -> None:
    held, had = slot_seconds(workers, slots, load, seed)
    assert max(held.values()) <= MOST * sum(held.values()) / workers
    assert max(had.values()) <= MOST * SESSIONS / workers
