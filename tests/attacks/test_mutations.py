"""The corpus can fail: with one layer of the sandbox taken away, the cases that attack it say so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest

from enclave_worker.api import RuntimeConfig, create_runtime_worker
from enclave_worker.attacks.corpus import load
from enclave_worker.attacks.judge import Verdict
from enclave_worker.attacks.runner import attack
from enclave_worker.zygote import kernel
from enclave_worker.zygote_process import ZygoteProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_worker.attacks.judge import Report
    from enclave_worker.sandbox.plan import Plan, Step

    Edit = Callable[[list[Step]], list[Step]]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes away layers of a root-started worker")

CASES = {case.name: case for case in load()}
BIND_RECURSIVE = 4096 | 16384


class Mutation(NamedTuple):
    """A layer less."""

    edits: tuple[Edit, ...]
    noticed_by: tuple[str, ...]


def without(*names: str) -> Edit:
    """Leave out steps by name, or by the beginning of it if that ends with a star."""

    def edit(steps: list[Step]) -> list[Step]:
        return [step for step in steps if not any(_matches(str(step[0]), name) for name in names)]

    return edit


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def without_namespace(flag: int) -> Edit:
    """Leave out one of the namespaces that are entered together."""

    def edit(steps: list[Step]) -> list[Step]:
        return [
            [step[0], step[1], step[2] & ~flag] if step[1] == "unshare" and isinstance(step[2], int) else step
            for step in steps
        ]

    return edit


def with_text(was: str, now: str) -> Edit:
    """Change an argument wherever it says `was`."""

    def edit(steps: list[Step]) -> list[Step]:
        return [[part.replace(was, now) if isinstance(part, str) else part for part in step] for step in steps]

    return edit


def with_directory(path: str) -> Edit:
    """Show one more directory of the host."""

    def edit(steps: list[Step]) -> list[Step]:
        at = next((number for number, step in enumerate(steps) if step[1] == "pivot"), None)
        if at is None:
            return steps
        more: list[Step] = [
            [f"directory {path}", "directory", f".{path}"],
            [f"bind {path}", "mount", path, f".{path}", None, BIND_RECURSIVE],
        ]
        return [*steps[:at], *more, *steps[at:]]

    return edit


NO_FILTER = without("system call filter")
MUTATIONS = {
    "system call filter": Mutation(
        (NO_FILTER,),
        (
            *("kernel_rings", "kernel_keyrings", "kernel_programs", "kernel_memory_tricks", "network_families"),
            "information_watched_files",
        ),
    ),
    "network namespace": Mutation(
        (without_namespace(kernel.CLONE_NEWNET), without("loopback up")), ("network_host_services",)
    ),
    # Either of the two is enough: only together are they missed.
    "ipc namespace and filter": Mutation((without_namespace(kernel.CLONE_NEWIPC), NO_FILTER), ("information_ipc",)),
    "uts namespace": Mutation(
        (without_namespace(kernel.CLONE_NEWUTS), without("hostname")), ("information_host_identity",)
    ),
    "a root without the host's files": Mutation((with_directory("/var/tmp"),), ("files_host_secrets",)),
    "resource limits": Mutation((without("limit *"),), ("resources_descriptors", "resources_kernel_objects")),
    "no capabilities": Mutation(
        (without("no capabilities", "empty bounding set", "no ambient capabilities"),), ("identity_capabilities",)
    ),
    "undumpable": Mutation((without("undumpable"),), ("kernel_own_flags", "files_first_process")),
    "locked securebits": Mutation((without("lock securebits"),), ("kernel_own_flags",)),
    "processes only in /proc": Mutation((with_text("subset=pid", ""),), ("kernel_tunables",)),
    "memory control group": Mutation((without("join memory group"),), ("resources_memory_of_many",)),
    "size-limited tmpfs": Mutation((with_text("size=67108864", "size=100m"),), ("files_sparse",)),
    "inode-limited tmpfs": Mutation((with_text("nr_inodes=8192", "nr_inodes=100000"),), ("files_inodes",)),
    "user namespace": Mutation(
        # Without it there is no right to the bounding set and the securebits either.
        (
            without("user namespace", "deny setgroups", "map *", "no nested user namespaces"),
            without("empty bounding set", "lock securebits"),
        ),
        ("identity_maps",),
    ),
}


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mutation], None]:
    """Have every zygote perform an edited plan, without the self-test that would refuse it."""
    start = ZygoteProcess.start.__func__  # type: ignore[attr-defined]

    def apply(mutation: Mutation) -> None:
        def edited(steps: list[Step]) -> list[Step]:
            for edit in mutation.edits:
                steps = edit(steps)
            return steps

        async def start_mutated(cls: type[ZygoteProcess], plan: Plan, *arguments: Any) -> ZygoteProcess:
            weaker = msgspec.structs.replace(plan, prepare=edited(plan.prepare), enclose=edited(plan.enclose))
            assert weaker != plan, "the mutation names a step that is not there"
            process: ZygoteProcess = await start(cls, weaker, *arguments)
            process.proven = True
            return process

        monkeypatch.setattr(ZygoteProcess, "start", classmethod(start_mutated))

    return apply


@pytest.mark.parametrize("layer", MUTATIONS)
async def test_without_a_layer_the_cases_that_attack_it_report_a_breach(
    layer: str, mutate: Callable[[Mutation], None]
) -> None:
    mutation = MUTATIONS[layer]
    mutate(mutation)

    reports: dict[str, Report] = {}
    worker = create_runtime_worker(RuntimeConfig(pool_size=1))
    async for report in attack(worker, [CASES[name] for name in mutation.noticed_by]):
        reports[report.case] = report

    assert {name: reports[name].verdict for name in mutation.noticed_by} == dict.fromkeys(
        mutation.noticed_by, Verdict.BREACH
    )
