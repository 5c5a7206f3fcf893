"""From a worker's settings, and what it stands on, to its pools: who may have how many sandboxes, and as which user."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from enclave_protocol import SandboxError

from .languages import lacking
from .offers import Offer, kinds
from .pool import Pool
from .pools import Pools, ProfilePools
from .profiles import load_profiles
from .sandbox.open_plan import make_open_plan
from .sandbox.plan import make_plan
from .sandbox.spec import interpreter
from .slots import Slots
from .user_ids import describe, has_room, id_ranges

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .config import RuntimeConfig
    from .footing import Footing
    from .profiles import Profile
    from .sandbox.plan import Plan
    from .sandbox.spec import SandboxSpec

log = logging.getLogger("enclave.worker")

_DYING_MARGIN = 16
"""Sandboxes that may still be dying while their sessions' slots are taken again."""


def make_pools(config: RuntimeConfig, footing: Footing) -> tuple[list[Slots], Pools]:
    """Return the places for sandboxes, and the pools that fill them, of every profile that the worker offers.

    Raises:
        ProfileError: a profile can't be read, or this host can't give what it needs.
        SandboxError: our user namespace has too few user ids.
    """
    profiles = load_profiles(config.profiles, config.profiles_file)
    offers = [Offer.of(profile, footing, config) for profile in profiles.values()]
    _tell_what_is_lacking(offers)
    needed = places_needed(config, profiles.values())
    first_uid = _first_uid(config.first_uid, needed) if footing.privilege == "root" else 0
    slots: list[Slots] = []
    pools = {}
    first = 0  # no two live sandboxes share a place, whichever pool made them
    for offer in offers:
        places = _places(offer.profile, config)
        slots.append(
            Slots(
                places,
                first=first,
                first_uid=first_uid,
                groups=footing.groups,
                limits=offer.footing.group_limits,
            )
        )
        first += places
        pools[offer.profile.name] = _profile_pools(offer, config, slots[-1])
    return slots, Pools(pools)


def _tell_what_is_lacking(offers: list[Offer]) -> None:
    for language, why in lacking().items():
        names = [offer.profile.name for offer in offers if language in offer.profile.languages]
        if names:
            log.info("%s is not offered in %s: %s", language, ", ".join(names), why)


def places_needed(config: RuntimeConfig, profiles: Iterable[Profile]) -> int:
    """Return how many sandboxes there may be at once: so many host user ids it takes, started as root."""
    return sum(_places(profile, config) for profile in profiles)


def _places(profile: Profile, config: RuntimeConfig) -> int:
    """Return how many sandboxes of a profile there may be at once."""
    return _max_live(profile, config) * len(kinds(profile))


def _max_live(profile: Profile, config: RuntimeConfig) -> int:
    return config.max_sessions + _pool_size(profile, config) + _DYING_MARGIN


def _pool_size(profile: Profile, config: RuntimeConfig) -> int:
    return config.pool_size if profile.pool_size is None else profile.pool_size


def _profile_pools(offer: Offer, config: RuntimeConfig, slots: Slots) -> ProfilePools:
    profile, footing = offer.profile, offer.footing

    def pool(spec: SandboxSpec) -> Pool:
        return Pool(
            plan_for(spec, footing),
            interpreter(),
            size=_pool_size(profile, config),
            max_live=_max_live(profile, config),
            slots=slots,
            zygote_forks=config.zygote_forks,
        )

    return ProfilePools(offer, {kind: pool(spec) for kind, spec in offer.specs.items()})


def plan_for(spec: SandboxSpec, footing: Footing) -> Plan:
    """Return the steps that make a sandbox on what this host gives."""
    groups = footing.group_parents
    if not footing.namespaces:
        return make_open_plan(
            spec,
            privilege=footing.privilege,
            uid=os.geteuid(),
            landlock_abi=footing.landlock_abi,
            control_groups=groups,
        )
    return make_plan(
        spec,
        privilege=footing.privilege,
        uid=os.geteuid(),
        gid=os.getegid(),
        landlock_abi=footing.landlock_abi,
        own_clocks=footing.own_clocks,
        control_groups=groups,
    )


def _first_uid(wanted: int, count: int) -> int:
    """Check that our user namespace has the ids that sandboxes are to run as (a container's may not)."""
    ranges = id_ranges(Path("/proc/self/uid_map").read_text())
    if has_room(ranges, wanted, count):
        return wanted
    hint = f"choose --first-uid inside {describe(ranges)}"
    raise SandboxError("choose user ids", 0, f"no ids {wanted}-{wanted + count - 1} in this user namespace", hint=hint)
