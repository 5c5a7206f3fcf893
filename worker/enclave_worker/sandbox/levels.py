"""Security levels: which layers must hold, and what one sandbox may use of the machine. A table.

Most layers are in every plan, and a host that can't give one can't run a worker at any level but PERMISSIVE. A few
depend on the host; a level says of each whether it must be there. What a worker does without it tells in `hello`, in
its metrics and in its log.
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

MIB = 1024 * 1024


class Layer(enum.StrEnum):
    """A layer that not every host can give."""

    CONTROL_GROUPS = "control groups"
    """Memory, processes and processor time of the whole sandbox are limited and counted by the kernel."""
    LANDLOCK = "Landlock"
    """A second wall around files, abstract sockets and signals."""
    OWN_USER = "own host user"
    """Each sandbox runs as a host user of its own. Needs a worker that is started as root."""
    NAMESPACES = "namespaces"
    """Everything else: namespaces, a root of its own, no capabilities."""


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What one sandbox may use. The kernel enforces each; reaching one is a defined outcome."""

    memory_limit_bytes: int
    """Memory of everything in it, files in its tmpfs included; and address space of each process."""
    processes: int
    """Processes and threads."""
    cpus: float
    """Processors at a time."""
    cpu_time_ms: int
    """Processor time in all."""
    open_files: int
    """Descriptors of each process."""
    disk_bytes: int
    """Size of each of its three writable directories, and of a file."""


LevelName = Literal["STRICT", "SECURE", "STANDARD", "PERMISSIVE"]


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table."""

    name: LevelName
    requires: frozenset[Layer]
    """Without one of these a worker does not start."""
    resources: Resources


_ALL = frozenset(Layer)

LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        Level(
            name="STRICT",
            requires=_ALL,
            resources=Resources(
                memory_limit_bytes=256 * MIB,
                processes=16,
                cpus=0.5,
                cpu_time_ms=5_000,
                open_files=128,
                disk_bytes=16 * MIB,
            ),
        ),
        Level(
            name="SECURE",
            requires=_ALL - {Layer.OWN_USER},
            resources=Resources(
                memory_limit_bytes=512 * MIB,
                processes=64,
                cpus=1,
                cpu_time_ms=15_000,
                open_files=256,
                disk_bytes=64 * MIB,
            ),
        ),
        Level(
            name="STANDARD",
            requires=frozenset({Layer.NAMESPACES}),
            resources=Resources(
                memory_limit_bytes=512 * MIB,
                processes=64,
                cpus=2,
                cpu_time_ms=30_000,
                open_files=256,
                disk_bytes=64 * MIB,
            ),
        ),
        Level(
            name="PERMISSIVE",
            requires=frozenset(),
            resources=Resources(
                memory_limit_bytes=1024 * MIB,
                processes=256,
                cpus=0,
                cpu_time_ms=60_000,
                open_files=1024,
                disk_bytes=256 * MIB,
            ),
        ),
    )
}
"""From the strictest. Processor times are the execution times of the levels that users know by these names."""

DEFAULT_LEVEL: LevelName = "SECURE"
BEST = "BEST"
"""May be asked for in a level's place: the default level if the host can give it, else STANDARD if it can."""


def choose_level(name: str, lacking: dict[Layer, str]) -> Level:
    """Return the level that `name` stands for on a host that lacks these layers.

    BEST never comes to stand for PERMISSIVE: a weaker wall than namespaces has to be asked for by its name.
    """
    if name != BEST:
        return LEVELS[name]
    default, standard = LEVELS[DEFAULT_LEVEL], LEVELS["STANDARD"]
    return standard if missing_layers(default, lacking) else default


def missing_layers(level: Level, lacking: dict[Layer, str]) -> dict[Layer, str]:
    """Return, of the layers a host lacks (each with the reason), those that `level` requires."""
    return {layer: reason for layer, reason in lacking.items() if layer in level.requires}
