"""`enclave doctor`: what it finds is what is there, and what it advises fits the cause."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from enclave_worker import doctor, doctor_layers, doctor_probes
from enclave_worker.doctor import stepped_aside
from enclave_worker.doctor_layers import judge_ids
from enclave_worker.doctor_needs import (
    NEEDS,
    Answer,
    Host,
    Need,
    fix_control_groups,
    fix_namespace,
    fix_own_user,
    fix_pinned_memory,
    fix_proc,
    fix_time_namespace,
)
from enclave_worker.doctor_probes import landlock_adds
from enclave_worker.doctor_verdict import Check, Diagnosis, Start, judge, render, starts_of
from enclave_worker.sandbox.levels import LEVELS, Layer
from enclave_worker.zygote.kernel import landlock_abi
from tests.support import ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(doctor.__file__).with_name("doctor_probes.py")
# Enters namespaces in which something is then spoilt, and becomes another program.
SPOILT = """
import os, sys
sys.path.insert(0, sys.argv[1])
import kernel

uid, gid = os.getuid(), os.getgid()
kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
exec(sys.argv[2])
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""
COMMAND = ("-P", "-m", "enclave_client.cli", "doctor")
needs_time_namespaces = pytest.mark.skipif(
    not Path("/proc/sys/user/max_time_namespaces").exists(), reason="this kernel has no time namespaces"
)
NO_USER_NAMESPACES = "open('/proc/sys/user/max_user_namespaces', 'w').write('0')"


def run_spoilt(spoil: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python with these arguments in a user namespace in which `spoil` was executed first."""
    command = [sys.executable, "-I", "-S", "-c", SPOILT, str(SCRIPT.parent / "zygote"), spoil, *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=False)


def probe_after(name: str, spoil: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run_spoilt(spoil, "-I", "-S", str(SCRIPT), name).stdout)
    return answer


def host(*, root: bool = False, container: str = "", **sysctls: str) -> Host:
    return Host(
        root=root,
        container=container,
        sysctls={name.replace("__", "/"): v for name, v in sysctls.items()},
        interpreter="/opt/enclave/bin/python3.12",
    )


ANSWER = Answer(ok=False, found="Operation not permitted", errno=1)


def test_every_need_has_a_probe_and_every_probe_is_needed() -> None:
    assert {need.probe for need in NEEDS if not need.ours} == set(doctor_probes.PROBES)
    assert {need.probe for need in NEEDS if need.ours} == set(doctor_layers.PROBES)


def test_a_forbidden_user_namespace_is_found_missing() -> None:
    answer = probe_after("user_namespace", NO_USER_NAMESPACES)

    assert not answer["ok"]
    assert "No space left" in answer["found"]


@pytest.mark.parametrize("kind", ["mnt", "net", "pid", "ipc", "uts", "cgroup", "time"])
def test_a_forbidden_namespace_is_found_missing(kind: str) -> None:
    names = {"mnt": "mount", "net": "network"}
    spoil = f"open('/proc/sys/user/max_{kind}_namespaces', 'w').write('0')"

    assert not probe_after(f"{names.get(kind, kind)}_namespace", spoil)["ok"]


def test_a_masked_proc_is_found_missing() -> None:
    # As in a container: something lies over a part of /proc, and a namespace below cannot take it away.
    again = SPOILT[SPOILT.index("uid, gid") : SPOILT.index("exec")]
    spoil = "kernel.mount(b'tmpfs', b'/proc/sys', b'tmpfs', 0, None)\n" + again

    assert not probe_after("proc", spoil)["ok"]


def test_few_open_files_are_found_missing() -> None:
    spoil = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))"

    answer = probe_after("rlimits", spoil)

    assert (answer["ok"], answer["found"]) == (False, "at most 100 open files")


@pytest.mark.parametrize(("name", "bit"), [("KILL", 5), ("NET_ADMIN", 12), ("SYS_ADMIN", 21)])
def test_root_without_a_capability_it_needs_is_an_ordinary_user(name: str, bit: int) -> None:
    # From the bounding set, so that the next program lacks it too.
    answer = probe_after("own_user", f"kernel.prctl(kernel.PR_CAPBSET_DROP, {bit})")

    assert (answer["ok"], answer["found"]) == (False, f"root here lacks {name}")


@pytest.mark.parametrize("probe", ["user_namespace", "guest_user_namespace", "proc", "pivot_root"])
def test_root_that_cannot_do_what_root_does_is_tried_as_an_ordinary_user(probe: str) -> None:
    answer = probe_after(probe, "kernel.prctl(kernel.PR_CAPBSET_DROP, 21)")

    assert answer["ok"]
    assert "as root" not in answer["found"]


@pytest.mark.parametrize(
    ("machine", "advice"),
    [
        (host(user__max_user_namespaces="0"), "sysctl -w user.max_user_namespaces=15000"),
        (host(user__max_net_namespaces="0", root=True), "sysctl -w user.max_net_namespaces=15000"),
        (host(kernel__unprivileged_userns_clone="0"), "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            host(kernel__apparmor_restrict_unprivileged_userns="1"),
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (host(container="docker", kernel__unprivileged_userns_clone="1"), "docker run --cap-add SYS_ADMIN"),
        (host(container="kubernetes"), "hostUsers: false"),
        (host(), "as root"),
        (host(root=True, kernel__unprivileged_userns_clone="0"), "CONFIG_USER_NS"),
    ],
)
def test_the_advice_names_the_setting_that_forbids_it(machine: Host, advice: str) -> None:
    assert advice in fix_namespace(machine, ANSWER)


@pytest.mark.skipif(not landlock_abi(), reason="this kernel has no Landlock")
def test_a_landlock_that_cannot_be_entered_is_found_missing() -> None:
    # The kernel stacks sixteen layers, and they are all in force already.
    stack = "kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)\nfor _ in range(16): kernel.landlock(1 << 12, 0, 0)"

    assert not probe_after("landlock", stack)["ok"]


@pytest.mark.parametrize(
    ("machine", "number", "advice"),
    [
        (host(user__max_time_namespaces="0"), errno.ENOSPC, "sysctl -w user.max_time_namespaces=15000"),
        (host(user__max_time_namespaces="15000", root=True), errno.EPERM, "as an ordinary user"),
        (host(container="docker", root=True), errno.EPERM, "as an ordinary user"),
        (host(), errno.EINVAL, "CONFIG_TIME_NS=y"),
    ],
)
def test_clocks_of_their_own_are_not_bought_with_the_power_to_set_the_hosts(
    machine: Host, number: int, advice: str
) -> None:
    assert advice in fix_time_namespace(machine, Answer(ok=False, found="refused", errno=number))


@pytest.mark.parametrize(
    ("machine", "number", "advice"),
    [
        (host(), errno.ENOSYS, "CONFIG_IO_URING=y"),
        (host(), errno.ENOMEM, "LimitMEMLOCK"),
        (host(kernel__io_uring_disabled="2", root=True), errno.EPERM, "sysctl -w kernel.io_uring_disabled=1"),
        (host(kernel__io_uring_disabled="1"), errno.EPERM, "kernel.io_uring_group"),
        (host(container="docker", kernel__io_uring_disabled="0"), errno.EPERM, "system call filter"),
    ],
)
def test_the_advice_for_pinned_memory_names_what_forbids_it(machine: Host, number: int, advice: str) -> None:
    assert advice in fix_pinned_memory(machine, Answer(ok=False, found="refused", errno=number))


def test_a_limit_of_locked_memory_that_is_too_low_for_zygotes_is_not_called_enough() -> None:
    low = (
        "import resource; resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))\n"
        "from enclave_worker.doctor_layers import pinned_memory\n"
        "try: print(pinned_memory().ok)\n"
        "except OSError: print('refused')\n"
    )
    assert run_as("an ordinary user", "-c", low).stdout.strip() == "refused"


@needs_time_namespaces
def test_root_that_may_not_set_clocks_makes_none() -> None:
    spoil = "kernel.prctl(kernel.PR_CAPBSET_DROP, 25)"

    answer = probe_after("time_namespace", spoil)

    assert (answer["ok"], answer["errno"]) == (False, errno.EPERM)


@needs_time_namespaces
@pytest.mark.parametrize(
    ("spoil", "possible"),
    [
        ("", True),
        ("kernel.prctl(kernel.PR_CAPBSET_DROP, 25)", False),
        ("open('/proc/sys/user/max_time_namespaces', 'w').write('0')", False),
    ],
    ids=["allowed", "root without CAP_SYS_TIME", "none allowed"],
)
def test_a_worker_plans_for_clocks_only_where_it_can_set_them(spoil: str, possible: bool) -> None:  # noqa: FBT001 - a parameter
    ask = "import sys; sys.path.insert(0, sys.argv[1]); import kernel; print(kernel.can_set_clocks())"

    done = run_spoilt(spoil, "-I", "-S", "-c", ask, str(SCRIPT.parent / "zygote"))

    assert done.stdout.decode().strip() == str(possible), done.stderr.decode()


def test_a_masked_proc_in_a_container_is_unmasked_by_the_container() -> None:
    assert "systempaths=unconfined" in fix_proc(host(container="docker"), ANSWER)
    assert "procMount: Unmasked" in fix_proc(host(container="kubernetes"), ANSWER)


@pytest.mark.parametrize("ours", [False, True])
def test_a_probe_that_says_nothing_is_a_missing_feature(ours: bool) -> None:  # noqa: FBT001 - a parameter
    need = Need(probe="no_such_probe", name="a", needed_for="b", fix=lambda _host, _answer: "", ours=ours)

    answer = doctor.probe(need)

    assert not answer.ok
    assert "no_such_probe" in answer.found


def test_the_apparmor_profile_can_be_pasted_and_is_for_this_interpreter_alone(tmp_path: Path) -> None:
    fix = fix_namespace(host(kernel__apparmor_restrict_unprivileged_userns="1"), ANSWER)

    command = next(line for line in fix.splitlines() if line.startswith("printf")).partition(" | sudo tee ")[0]
    printed = subprocess.run(["sh", "-c", command], capture_output=True, check=True, cwd=tmp_path).stdout.decode()
    assert printed == (
        "abi <abi/4.0>,\n"
        "include <tunables/global>\n"
        "profile enclave-runtime /opt/enclave/bin/python3.12 flags=(unconfined) {\n"
        "  userns,\n"
        "}\n"
    )


@pytest.mark.parametrize(
    ("machine", "number", "advice"),
    [
        (host(), errno.EROFS, "its own words"),
        (host(container="docker"), errno.EROFS, "--security-opt writable-cgroups=true"),
        (host(container="kubernetes"), errno.EROFS, "cgroup_writable"),
        (host(container="docker"), errno.EACCES, "its own words"),
    ],
)
def test_the_advice_on_control_groups_is_the_workers_own_unless_a_container_withholds_them(
    machine: Host, number: int, advice: str
) -> None:
    answer = Answer(ok=False, found="none", errno=number, fix="its own words")

    assert advice in fix_control_groups(machine, answer)


def test_the_advice_on_host_users_depends_on_what_took_them_away() -> None:
    assert "as root" in fix_own_user(host(), ANSWER)
    assert "--cap-add" in fix_own_user(host(root=True, container="docker"), ANSWER)
    assert "capabilities.add" in fix_own_user(host(root=True, container="kubernetes"), ANSWER)


@pytest.mark.parametrize(
    ("uid_map", "ok", "options"),
    [
        ("         0          0 4294967295\n", True, ()),
        ("         0     589824      65536\n", True, ("--first-uid", "20000")),
        ("0 1000 1\n1 589824 5000\n", True, ("--first-uid", "1000")),
        ("0 1000 1\n", False, ()),
        ("0 0 1060\n", False, ()),
    ],
    ids=["a host", "a pod", "few", "one", "the system's only"],
)
def test_a_range_of_user_ids_with_room_for_all_sandboxes_is_found(
    uid_map: str,
    ok: bool,  # noqa: FBT001 - a parameter
    options: tuple[str, ...],
) -> None:
    answer = judge_ids(uid_map, 200_000, 80)

    assert (answer.ok, answer.options) == (ok, options)


def test_a_worker_starts_with_the_ids_that_were_found() -> None:
    # A user namespace with the ids of a pod, and all capabilities: root inside of it acts as root.
    if os.geteuid() != 0:
        pytest.skip("only root can map a range of ids")
    command = [sys.executable, *COMMAND, "--level", "STANDARD"]
    wait = "import os, sys; os.read(0, 1); os.execv(sys.argv[1], sys.argv[1:])"
    namespace = ["unshare", "--user", sys.executable, "-c", wait, *command]
    with subprocess.Popen(namespace, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        wait_for_other_namespace(process.pid)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text("0 0 65536")
        out, _ = process.communicate(b"x", timeout=60)

    assert "--first-uid 20000" in out.decode(), out.decode()
    assert process.returncode == 0


def wait_for_other_namespace(pid: int) -> None:
    """Wait until a process has entered a user namespace; it cannot tell us itself, before it has ids there."""
    own = Path("/proc/self/ns/user").readlink()
    while Path(f"/proc/{pid}/ns/user").readlink() == own:
        os.sched_yield()


@pytest.mark.parametrize(
    ("abi", "words"),
    [
        (1, "files; not yet truncation (ABI 3), device controls (ABI 5), abstract sockets, signals (ABI 6)"),
        (5, "files, truncation, device controls; not yet abstract sockets, signals (ABI 6)"),
        (7, "files, truncation, device controls, abstract sockets, signals"),
    ],
)
def test_an_abi_of_landlock_is_said_by_what_it_guards(abi: int, words: str) -> None:
    assert landlock_adds(abi) == words


# --- What it means, of made-up answers -------------------------------------------------------------------------------


def diagnosis(*missing: Layer | str, fails: tuple[str, ...] = (), asked: str = "") -> Diagnosis:
    """What would be found where a need of each of these layers is missing, and workers fail at these levels."""
    layers = [*Layer, "every level", "no level"]
    checks = tuple(
        judge(
            Need(probe="p", name=f"need of {layer}", needed_for="it", fix=lambda _host, _a: "mend\nthis", layer=layer),
            host(),
            Answer(ok=layer not in missing, found="this"),
        )
        for layer in layers
    )
    starts = starts_of(checks, asked, lambda level: Start(level=level, ok=level.name not in fails, said="so"))
    return Diagnosis(checks=checks, starts=tuple(starts))


@pytest.mark.parametrize(
    ("missing", "level"),
    [
        ((), "STRICT"),
        (("no level",), "STRICT"),
        ((Layer.OWN_USER,), "SECURE"),
        ((Layer.LANDLOCK,), "STANDARD"),
        ((Layer.CONTROL_GROUPS, Layer.OWN_USER), "STANDARD"),
        ((Layer.NAMESPACES,), None),
        (("every level",), None),
    ],
)
def test_the_level_is_the_strictest_whose_layers_are_all_there(
    missing: tuple[Layer | str, ...], level: str | None
) -> None:
    found = diagnosis(*missing).level

    assert (found.name if found else None) == level


def test_a_level_at_which_no_worker_starts_is_not_given_whatever_the_checks_say() -> None:
    found = diagnosis(fails=("STRICT", "SECURE"))

    assert found.level == LEVELS["STANDARD"]
    assert "Nothing is missing for STRICT, SECURE, and yet no worker starts: please report it." in render(found)


@pytest.mark.parametrize(
    ("missing", "given"),
    [
        ((), {"STRICT", "SECURE", "STANDARD", "PERMISSIVE", "BEST"}),
        ((Layer.CONTROL_GROUPS,), {"STANDARD", "PERMISSIVE", "BEST"}),
        ((Layer.NAMESPACES,), {"PERMISSIVE"}),
        (("every level",), set()),
    ],
)
def test_a_level_is_given_if_a_worker_started_at_it(missing: tuple[Layer | str, ...], given: set[str]) -> None:
    assert {name for name in (*LEVELS, "BEST") if diagnosis(*missing, asked=name).gives(name)} == given


def test_the_advice_is_for_the_next_level_only() -> None:
    text = render(diagnosis(Layer.CONTROL_GROUPS, Layer.OWN_USER))

    assert "\nFor SECURE:\n  need of control groups: mend\n    this\n" in text
    assert "STRICT:" not in text
    assert text.endswith("Start workers with: enclave-runtime --level STANDARD\n\nThis host gives STANDARD.")


def test_one_piece_of_advice_is_given_once() -> None:
    text = render(diagnosis(Layer.CONTROL_GROUPS, Layer.LANDLOCK, "no level"))

    assert text.count("  need of control groups, need of Landlock: mend") == 1
    assert "need of no level:" not in text


def test_the_advice_is_for_the_level_that_was_asked_about() -> None:
    text = render(diagnosis(Layer.CONTROL_GROUPS, Layer.OWN_USER), "STRICT")

    assert "For STRICT:\n  need of control groups, need of own host user: mend" in text
    assert text.endswith("This host gives STANDARD, not STRICT.")


def test_with_the_highest_level_nothing_is_left_to_mend() -> None:
    text = render(diagnosis("no level", asked="SECURE"), "SECURE")

    assert "\nFor " not in text
    assert "absent" in text
    assert text.endswith("This host gives STRICT, the highest there is.")


def test_permissive_is_named_only_where_nothing_else_starts() -> None:
    assert "PERMISSIVE" not in render(diagnosis(Layer.CONTROL_GROUPS))
    assert "does without walls" not in render(diagnosis(Layer.NAMESPACES, fails=("PERMISSIVE",)))

    text = render(diagnosis(Layer.NAMESPACES))
    assert "a worker at PERMISSIVE, which does without walls" in text
    assert "--level" not in text
    assert text.endswith("This host gives no level yet: a worker cannot start.")
    assert "PERMISSIVE" not in render(diagnosis("every level"))


def test_the_command_line_has_the_options_that_this_host_makes_necessary() -> None:
    found = diagnosis()
    checks = (
        *found.checks,
        Check(name="a", needed_for="b", ok=True, found="c", layer="every level", options=("-x", "1")),
    )

    assert "enclave-runtime --level STRICT -x 1\n" in render(Diagnosis(checks=checks, starts=found.starts))


# --- The command, on this machine ------------------------------------------------------------------------------------


LEVEL_OF_A_WORKER = """
from enclave_worker.config import RuntimeConfig
from enclave_worker.footing import find_footing
from enclave_worker.sandbox.levels import LEVELS, missing_layers

footing = find_footing(RuntimeConfig(level="STANDARD"))
footing.close()
print(next(level.name for level in LEVELS.values() if not missing_layers(level, footing.lacking)))
"""
ENOUGH = {
    "STRICT": {"STRICT"},
    "SECURE": {"STRICT", "SECURE"},
    "BEST": {"STRICT", "SECURE", "STANDARD"},
}
as_both = pytest.mark.parametrize("who", ["whoever runs the tests", "an ordinary user"])


def run_as(who: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as one of the two, with nothing configured by the environment."""
    command = [sys.executable, *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")}
    return subprocess.run(
        ordinary_user(command) if who == "an ordinary user" else command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


@functools.cache
def level_of_a_worker(who: str) -> str:
    """The strictest level whose layers a worker itself finds."""
    return run_as(who, "-P", "-c", LEVEL_OF_A_WORKER).stdout.strip()


@as_both
@pytest.mark.parametrize("asked", ["", "STRICT", "BEST"])
def test_the_command_finds_the_level_of_a_worker_and_its_exit_code_answers(who: str, asked: str) -> None:
    level = level_of_a_worker(who)

    found = run_as(who, *COMMAND, *(["--level", asked] if asked else []))

    last = found.stdout.splitlines()[-1]
    assert re.split("[,.]", last)[0] == f"This host gives {level}", found.stdout + found.stderr
    assert re.search(rf"^ok +a worker at {level} ", found.stdout, re.MULTILINE)
    assert found.returncode == (0 if level in ENOUGH[asked or "SECURE"] else 1)


@as_both
def test_attacks_are_made_at_the_highest_level(who: str) -> None:
    only = ("--attack", "--only", "network_families")

    assert f", at level {level_of_a_worker(who)}\n" in run_as(who, *COMMAND, *only).stdout


def test_attacks_can_be_made_at_a_level_that_is_asked_for() -> None:
    only = ("--attack", "--only", "network_families")

    assert ", at level STANDARD\n" in run_as("an ordinary user", *COMMAND, *only, "--level", "STANDARD").stdout


def test_the_command_exits_with_one_where_none_can_start_and_gives_the_exact_command() -> None:
    done = run_spoilt(NO_USER_NAMESPACES, *COMMAND, "--level", "STANDARD")

    assert done.returncode == 1
    assert "sudo sysctl -w user.max_user_namespaces=15000" in done.stdout.decode()
    assert "enclave-runtime --level" not in done.stdout.decode()


@pytest.mark.parametrize("arguments", ["", "--attack --only network_families"])
def test_an_output_that_takes_nothing_is_one_clear_line(arguments: str) -> None:
    shell = f'exec "$0" {" ".join(COMMAND)} {arguments} >/dev/full'

    done = subprocess.run(["sh", "-c", shell, sys.executable], capture_output=True, timeout=120, check=False)

    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "enclave: cannot write the output: No space left on device"
    assert b"Traceback" not in done.stderr


def test_an_output_that_nobody_reads_ends_quietly() -> None:
    shell = f'"$0" {" ".join(COMMAND)} | true; echo "${{PIPESTATUS[0]}}"'

    done = subprocess.run(["bash", "-c", shell, sys.executable], capture_output=True, timeout=120, check=False)

    assert (done.stdout, done.stderr) == (b"1\n", b"")


@pytest.fixture
def empty_group() -> Iterator[str]:
    """A control group of version 2 that is nobody's, wherever that is mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mount = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    if mount is None or os.geteuid() != 0:
        pytest.skip("needs root and control groups of version 2")
    group = f"{mount}/test-doctor-{os.getpid()}"
    Path(group).mkdir()
    yield group
    Path(group).rmdir()


STEP_ASIDE = """
import subprocess, sys
from pathlib import Path
from enclave_worker.doctor import stepped_aside

group = sys.argv[1]
members = Path(group, "cgroup.procs")
members.write_text("0")
with stepped_aside(group) as enter:
    print(members.read_text().split())
    child = subprocess.run(["cat", "/proc/self/cgroup"], preexec_fn=enter, capture_output=True, text=True, check=True)
    print(child.stdout.splitlines()[-1].rpartition("/")[2] == Path(group).name)
print(len(members.read_text().split()), len([path for path in Path(group).iterdir() if path.is_dir()]))
"""


def test_a_worker_that_is_tried_has_our_control_group_for_itself(empty_group: str) -> None:
    done = run_as("whoever runs the tests", "-P", "-c", STEP_ASIDE, empty_group)

    assert done.stdout.splitlines() == ["[]", "True", "1 0"], done.stderr


def test_where_stepping_aside_is_forbidden_we_stay(tmp_path: Path) -> None:
    with stepped_aside(f"{tmp_path}/missing") as enter:
        assert enter is None
    with stepped_aside("") as enter:
        assert enter is None
