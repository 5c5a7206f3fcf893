"""From a sandbox's description to its steps: the order that holds, and no step without a name."""

from __future__ import annotations

import json

import msgspec
import pytest

from enclave_worker.sandbox.levels import LEVELS
from enclave_worker.sandbox.plan import Plan, Privilege, Step, make_plan
from enclave_worker.sandbox.spec import SandboxSpec, python_spec
from enclave_worker.zygote.steps import OPERATIONS

SPEC = python_spec(LEVELS["SECURE"].resources, counted=True)
GROUPS = {"memory": "/sys/fs/cgroup/memory/enclave-1", "pids": "/sys/fs/cgroup/pids/enclave-1"}


def plan(privilege: Privilege, **changes: object) -> Plan:
    spec = msgspec.structs.replace(SPEC, **changes)
    return make_plan(
        spec, privilege=privilege, uid=1234, gid=1234, landlock_abi=7, own_clocks=True, control_groups=GROUPS
    )


def names(steps: list[Step]) -> list[str]:
    return [str(step[0]) for step in steps]


@pytest.fixture(params=["root", "user"])
def privilege(request: pytest.FixtureRequest) -> Privilege:
    """Who started the worker."""
    who: Privilege = request.param
    return who


def test_every_step_is_plain_json_and_names_an_operation_there_is(privilege: Privilege) -> None:
    made = plan(privilege)
    for step in [*made.launch, *made.prepare, *made.enclose]:
        assert json.loads(json.dumps(step)) == step
        assert step[1] in OPERATIONS


def test_no_two_steps_of_a_list_have_the_same_name(privilege: Privilege) -> None:
    made = plan(privilege)
    for steps in (made.launch, made.prepare, made.enclose):
        assert len(set(names(steps))) == len(steps), "a failure report must tell which"


def test_the_filter_comes_last_and_the_user_namespace_after_all_others(privilege: Privilege) -> None:
    order = names(plan(privilege).enclose)

    assert order[-1] == "system call filter"
    assert order.index("mount, net, ipc, uts and cgroup namespaces") < order.index("mount /proc")
    assert order.index("mount /proc") < order.index("user namespace")
    assert order.index("user namespace") < order.index("map user") < order.index("no capabilities")
    assert order.index("no capabilities") < order.index("limit NPROC"), "counted in the sandbox's own namespace"


def test_an_ordinary_user_gets_a_namespace_before_anything_else() -> None:
    assert names(plan("user").launch)[0] == "user namespace"
    assert "user namespace" not in names(plan("root").launch)


def test_root_gives_up_its_identity_and_an_ordinary_user_has_none_to_give() -> None:
    assert "identity" in names(plan("root").enclose)
    assert "identity" not in names(plan("user").enclose)


def test_everything_of_the_hosts_is_bound_read_only(privilege: Privilege) -> None:
    steps = plan(privilege).prepare
    bound = {name.removeprefix("bind ") for name in names(steps) if name.startswith("bind ")}
    read_only = {
        str(step[0]).removeprefix("read-only "): step for step in steps if str(step[0]).startswith("read-only ")
    }

    assert bound
    for path in bound:
        assert int(read_only[path][3] or 0) & 1, path


def test_what_is_visible_holds_nothing_of_the_hosts_homes_or_configuration() -> None:
    spec = SPEC
    for path in (*spec.visible, *spec.visible_files):
        assert not path.startswith(("/etc", "/var", "/proc", "/sys", "/run"))
        assert path not in {"/", "/home", "/usr"}


def test_each_writable_directory_has_a_size_and_a_number_of_files(privilege: Privilege) -> None:
    made = plan(privilege)
    mounts = {step[0]: str(step[-1]) for step in made.enclose if str(step[0]).startswith("mount /")}
    for tmpfs in SPEC.tmpfs:
        options = mounts[f"mount {tmpfs.path}"]
        assert f"size={tmpfs.size_bytes}" in options
        assert f"nr_inodes={tmpfs.inodes}" in options


def test_a_description_whose_sources_lie_everywhere_is_refused_in_words() -> None:
    spec: SandboxSpec = msgspec.structs.replace(
        SPEC,
        visible=tuple(f"{stage}/x" for stage in ("/tmp", "/var/tmp", "/mnt", "/media", "/srv", "/opt")),
    )
    with pytest.raises(ValueError, match="install it elsewhere"):
        make_plan(spec, privilege="root", uid=0, gid=0, landlock_abi=7, own_clocks=True)
