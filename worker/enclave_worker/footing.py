"""What a worker stands on: the layers that this host gives it, checked against the level it is to hold."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import TYPE_CHECKING

from enclave_protocol import SandboxError

from . import doctor
from .cgroups import ControlGroups, ControlGroupsMissing, GroupLimits
from .doctor_needs import NEEDS
from .sandbox.levels import Layer, choose_level, missing_layers
from .sandbox.spec import spare_address_bytes
from .usage import Allowance
from .zygote.kernel import acts_as_root, can_set_clocks, lacking_capabilities, landlock_abi

if TYPE_CHECKING:
    from .config import RuntimeConfig
    from .sandbox.levels import Level, Resources
    from .sandbox.plan import Privilege

log = logging.getLogger("enclave.worker")

_NAMESPACE_PROBES = (
    *("user_namespace", "guest_user_namespace", "mount_namespace", "pid_namespace", "network_namespace"),
    *("ipc_namespace", "uts_namespace", "cgroup_namespace", "tmpfs", "proc", "read_only_bind", "pivot_root", "keyring"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Footing:
    """Owns the control groups: `close` it when the last sandbox is gone."""

    level: Level
    resources: Resources
    privilege: Privilege
    groups: ControlGroups | None
    landlock_abi: int
    """0 if there is no Landlock."""
    own_clocks: bool
    """Whether sandboxes can have clocks of their own. No layer: nothing depends on it."""
    namespaces: bool = True
    """Whether sandboxes get namespaces. Only at PERMISSIVE may there be none."""
    lacking: dict[Layer, str]
    """Layers that it does without, each with the reason."""

    @property
    def group_limits(self) -> GroupLimits:
        """What the control groups are to enforce."""
        resources = self.resources
        return GroupLimits(
            memory_bytes=resources.memory_limit_bytes, processes=resources.processes, cpus=resources.cpus
        )

    @property
    def allowance(self) -> Allowance:
        """What sessions have to know of the limits."""
        resources, counted = self.resources, self.groups is not None
        return Allowance(
            memory_bytes=resources.memory_limit_bytes,
            cpu_time_ms=resources.cpu_time_ms,
            cpus=(resources.cpus if counted else 0) or float(os.cpu_count() or 1),
            processes=resources.processes,
            spare_address_bytes=spare_address_bytes(resources, counted=counted),
            watched=not counted,
        )

    @property
    def group_parents(self) -> dict[str, str]:
        """Where sandboxes join their control groups; empty if there are none."""
        return self.groups.slot_parents if self.groups is not None else {}

    def close(self) -> None:
        """Remove the control groups."""
        if self.groups is not None:
            self.groups.close()


def find_footing(config: RuntimeConfig) -> Footing:
    """Take what this host gives.

    Raises:
        SandboxError: it lacks a layer that the level requires; says which, why and what would help.
    """
    lacking: dict[Layer, str] = {}
    hints: dict[Layer, str] = {}
    privilege: Privilege = "root" if acts_as_root() else "user"
    if privilege == "user":
        lacks = ", ".join(lacking_capabilities())
        lacking[Layer.OWN_USER] = f"root here lacks {lacks}" if os.geteuid() == 0 else "not started as root"
        hints[Layer.OWN_USER] = "start the worker as root"
    groups = None
    try:
        groups = ControlGroups.open()
    except ControlGroupsMissing as missing:
        lacking[Layer.CONTROL_GROUPS], hints[Layer.CONTROL_GROUPS] = missing.reason, missing.fix
    abi = landlock_abi()
    if not abi:
        lacking[Layer.LANDLOCK] = "this kernel has none, or was started without it"
        hints[Layer.LANDLOCK] = "boot a kernel with CONFIG_SECURITY_LANDLOCK=y and landlock in lsm="
    level = choose_level(config.level, lacking)
    for layer, reason in missing_layers(level, lacking).items():
        if groups is not None:
            groups.close()
        hint = f"{hints[layer]}; or accept less with --level STANDARD, which limits what it can without"
        raise SandboxError(f"hold level {level.name}", 0, f"no {layer}: {reason}", hint=hint)
    if level.name == "PERMISSIVE":
        lacking.update(_lacking_namespaces())
        log.warning("%s", _permissive_warning(lacking))
    for layer, reason in lacking.items():
        log.warning("level %s, without %s: %s", level.name, layer, reason)
    return Footing(
        level=level,
        resources=config.resources(level),
        privilege=privilege,
        groups=groups,
        landlock_abi=abi,
        own_clocks=can_set_clocks(),
        namespaces=Layer.NAMESPACES not in lacking,
        lacking=lacking,
    )


def _lacking_namespaces() -> dict[Layer, str]:
    """Try whatever the full sandbox is built with, each in a process of its own, up to the first that fails."""
    for need in NEEDS:
        if need.probe in _NAMESPACE_PROBES and not (answer := doctor.probe(need)).ok:
            return {Layer.NAMESPACES: f"{need.name}: {answer.found}"}
    return {}


def _permissive_warning(lacking: dict[Layer, str]) -> str:
    if Layer.NAMESPACES not in lacking:
        return "level PERMISSIVE is for development: it starts without any layer that this host lacks"
    landlock = "does not open files of" if Layer.LANDLOCK not in lacking else "can read and write the files of"
    return (
        "level PERMISSIVE is for development: without namespaces code here IS NOT ISOLATED from this host's files, "
        f"network and processes. It {landlock} this user, and gets no network sockets; nothing else keeps it apart"
    )
