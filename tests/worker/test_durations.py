"""Our histograms say what the library's say of the same observations."""

from __future__ import annotations

import random

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from enclave_worker.durations import Durations

BOUNDS_S = (0.0005, 0.001, 0.25, 1, 60)


def exposed(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_they_read_as_the_librarys_do() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    plain = Durations("plain_seconds", "Of one kind.", BOUNDS_S)
    labelled = Durations("labelled_seconds", "Of two kinds.", BOUNDS_S, label="result")
    ours.register(plain)
    ours.register(labelled)
    observers = [plain.observer(), labelled.observer("warm"), labelled.observer("cold")]
    model = Histogram("labelled_seconds", "Of two kinds.", ["result"], buckets=BOUNDS_S)
    histograms = [Histogram("plain_seconds", "Of one kind.", buckets=BOUNDS_S, registry=theirs)]
    theirs.register(model)
    histograms += [model.labels("warm"), model.labels("cold")]

    draw = random.Random(1)
    seconds = [*BOUNDS_S, 0.0, 1000.0, *(draw.uniform(0, 70) for _ in range(50))]
    for number, each in enumerate(seconds):
        observers[number % 3](each)
        histograms[number % 3].observe(each)

    assert exposed(ours) == exposed(theirs)
