"""What a worker makes of a profile: its sandbox on this host, at this level."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import msgspec

from enclave_protocol import parse_limits

from . import packages
from .languages import javascript_package, lacking
from .profiles import SHIPPED, Profile, ProfileError, read_profiles
from .sandbox.levels import LEVELS, missing_layers
from .sandbox.spec import PACKAGES_PATH, Package, Rlimit, SandboxSpec, bare, javascript, python_spec

if TYPE_CHECKING:
    from enclave_protocol import Limits
    from enclave_protocol.languages import Language

    from .config import RuntimeConfig
    from .footing import Footing
    from .usage import Allowance

Kind = Literal["full", "bare", "javascript"]
"""Of which a profile has a zygote each: with all that it preloads, with nothing, with the engine for JavaScript."""
_OWN_RESOURCES = ("memory_limit_bytes", "processes", "cpus", "cpu_time_ms", "open_files", "disk_bytes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offer:
    """A profile that a worker offers."""

    profile: Profile
    footing: Footing
    """The worker's, with the profile's own level and resources."""
    allowance: Allowance
    limits: Limits
    """What a session's limits start from."""
    spec: SandboxSpec
    languages: tuple[Language, ...]
    """Of its profile's, those that this host can run; the first is what a session gets that does not say."""

    @property
    def specs(self) -> dict[Kind, SandboxSpec]:
        """What is to be kept warm."""
        made: dict[Kind, SandboxSpec] = {
            "full": self.spec,
            "bare": bare(self.spec),
        }
        if "javascript" in self.languages:
            made["javascript"] = javascript(self.spec, javascript_package())
        return {kind: made[kind] for kind in kinds(self.profile)}

    @classmethod
    def of(cls, profile: Profile, footing: Footing, config: RuntimeConfig) -> Self:
        """Return what a worker offers by this name.

        Args:
            profile: the profile.
            footing: what the worker stands on.
            config: what the worker was told, which holds where the profile says nothing.

        Raises:
            ProfileError: this host can't give its level, or a package of it is not installed or can't be shown.
        """
        own = _own_footing(profile, footing, config)
        allowance = own.allowance
        spare = allowance.spare_address_bytes + profile.spare_address_bytes
        return cls(
            profile=profile,
            footing=own,
            allowance=msgspec.structs.replace(allowance, spare_address_bytes=spare),
            limits=parse_limits(profile.limits, defaults=config.default_limits),
            spec=_spec(profile, own),
            languages=offered_languages(profile),
        )


def kinds(profile: Profile) -> tuple[Kind, ...]:
    """Return which kinds of sandboxes a profile keeps warm; raises what `offered_languages` raises."""
    languages = offered_languages(profile)
    found: list[Kind] = []
    if "python" in languages:
        found += ["full", "bare"] if profile.bare else ["full"]
    elif "shell" in languages:
        found.append("bare")
    return (*found, "javascript") if "javascript" in languages else tuple(found)


def offered_languages(profile: Profile) -> tuple[Language, ...]:
    """Return the languages of a profile that this host can run; raises ProfileError if its first is not among them."""
    missing, first = lacking(), profile.languages[0]
    if first in missing:  # code that names no language must not be taken for another one
        raise ProfileError(f"profile {profile.name!r}, languages: no {first} on this host: {missing[first]}")
    return tuple(language for language in profile.languages if language not in missing)


def _own_footing(profile: Profile, footing: Footing, config: RuntimeConfig) -> Footing:
    level = footing.level if profile.level is None else LEVELS[profile.level]
    for layer, reason in missing_layers(level, footing.lacking).items():
        raise ProfileError(f"profile {profile.name!r}, level: {level.name} requires {layer}, not there: {reason}")
    own = {name: getattr(profile, name) for name in _OWN_RESOURCES if getattr(profile, name) is not None}
    resources = msgspec.structs.replace(config.resources(level), **own)
    return dataclasses.replace(footing, level=level, resources=resources)


def _spec(profile: Profile, footing: Footing) -> SandboxSpec:
    base = python_spec(footing.resources, counted=footing.groups is not None)
    shown = _packages(profile)
    # For interpreters that a guest starts: its own was told where the packages are before it was one.
    env = {"PYTHONPATH": PACKAGES_PATH, **profile.env} if shown else profile.env
    rlimits = tuple(_widened(limit, profile.spare_address_bytes) for limit in base.rlimits)
    return msgspec.structs.replace(
        base, preload=profile.preload, packages=shown, env=tuple(env.items()), rlimits=rlimits
    )


def _widened(limit: Rlimit, spare_address_bytes: int) -> Rlimit:
    if limit.name != "AS":
        return limit
    return Rlimit(name="AS", soft=limit.soft + spare_address_bytes, hard=limit.hard + spare_address_bytes)


def _packages(profile: Profile) -> tuple[Package, ...]:
    try:
        if profile.packages_dir:
            source = packages.directory(Path(profile.packages_dir))
            return (Package(source=source, path=PACKAGES_PATH, directory=True),)
        return packages.of_distributions(profile.packages)
    except packages.NotInstalled as error:
        how = "'enclave[data]'" if read_profiles(SHIPPED).get(profile.name) == profile else error.name
        command = f"{Path(sys.executable).name} -m pip install {how}"
        raise ProfileError(f"profile {profile.name!r}: {error.name} is not installed: {command}") from error
    except packages.Unusable as error:
        raise ProfileError(f"profile {profile.name!r}: {error}") from error
