"""The plan for a host without namespaces: what it asks the kernel for, and that the self-test holds it to that."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from enclave_protocol import SandboxError
from enclave_worker.cgroups import GroupLimits
from enclave_worker.pool import Pool
from enclave_worker.sandbox.levels import LEVELS
from enclave_worker.sandbox.open_plan import make_open_plan
from enclave_worker.sandbox.spec import bare, interpreter, python_spec
from enclave_worker.slots import Slots
from enclave_worker.zygote.kernel import landlock_abi
from enclave_worker.zygote.steps import OPERATIONS

if TYPE_CHECKING:
    from enclave_worker.sandbox.plan import Plan, Privilege

SPEC = bare(python_spec(LEVELS["PERMISSIVE"].resources, counted=False))
NEEDS_NAMESPACES = {"unshare", "mount", "mount_attributes", "pivot", "hostname", "loopback", "write_at", "unmount"}


def plan(privilege: Privilege = "user", abi: int = 7) -> Plan:
    return make_open_plan(SPEC, privilege=privilege, uid=os.geteuid(), landlock_abi=abi)


def pool_of(plan: Plan) -> Pool:
    limits = GroupLimits(memory_bytes=1 << 30, processes=64, cpus=1)
    slots = Slots(4, first_uid=0, groups=None, limits=limits)
    return Pool(plan, interpreter(), size=2, max_live=4, slots=slots, zygote_forks=100)


@pytest.mark.parametrize("privilege", ["root", "user"])
def test_no_step_needs_a_namespace_and_all_have_names_of_their_own(privilege: Privilege) -> None:
    made = plan(privilege)
    for steps in (made.launch, made.prepare, made.enclose):
        assert json.loads(json.dumps(steps)) == steps
        assert {step[1] for step in steps} <= OPERATIONS.keys() - NEEDS_NAMESPACES
        assert len({step[0] for step in steps}) == len(steps)


def test_landlock_and_then_the_filter_come_last() -> None:
    assert [step[0] for step in plan().enclose[-2:]] == ["Landlock", "system call filter"]


def test_only_the_sandboxes_own_directory_and_devices_can_be_written() -> None:
    (step,) = (step for step in plan().enclose if step[0] == "Landlock")
    rules = dict(zip(step[5::2], step[6::2], strict=True))
    writable = {path for path, access in rules.items() if isinstance(access, int) and access & 2}

    assert writable == {"{scratch}/{slot}", *(f"/dev/{name}" for name in SPEC.devices)}
    assert "/" not in rules


@pytest.mark.usefixtures("no_leaks")
async def test_it_starts_without_landlock_too() -> None:
    pool = pool_of(plan(abi=0))
    await pool.start()
    await pool.stop()


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("layer", ["system call filter", "Landlock", "no new privileges"])
async def test_a_layer_that_was_left_out_keeps_the_worker_from_starting(layer: str) -> None:
    if layer == "Landlock" and not landlock_abi():
        pytest.skip("this kernel has no Landlock")
    made = plan(abi=landlock_abi())
    for steps in (made.prepare, made.enclose):
        steps[:] = [step for step in steps if step[0] != layer]

    with pytest.raises(SandboxError):
        await pool_of(made).start()


@pytest.mark.usefixtures("no_leaks")
async def test_a_directory_that_cannot_be_made_is_named() -> None:
    made = msgspec.structs.replace(plan(abi=0), scratch="/no/such/directory")

    with pytest.raises(SandboxError) as caught:
        await pool_of(made).start()

    assert "directory /no/such/directory/enclave-" in caught.value.step
