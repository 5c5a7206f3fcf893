"""System calls, privileges and namespaces: what the kernel refuses a guest, and what for."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import pytest

from enclave_worker.sandbox.seccomp import ARCHITECTURES

if TYPE_CHECKING:
    from .conftest import Attack

NUMBERS = ARCHITECTURES[platform.machine()].numbers
X86_64 = platform.machine() == "x86_64"

# Arguments are invalid throughout, so that only who refuses differs: EPERM or ENOSYS come from the filter.
REFUSED = {
    "mount": "mount",
    "unmount": "umount2",
    "pivot_root": "pivot_root",
    "chroot": "chroot",
    "open_tree": "open_tree",
    "fsopen": "fsopen",
    "move_mount": "move_mount",
    "mount_setattr": "mount_setattr",
    "unshare": "unshare",
    "setns": "setns",
    "ptrace": "ptrace",
    "process_vm_readv": "process_vm_readv",
    "process_vm_writev": "process_vm_writev",
    "pidfd_getfd": "pidfd_getfd",
    "keyctl": "keyctl",
    "add_key": "add_key",
    "request_key": "request_key",
    "bpf": "bpf",
    "perf_event_open": "perf_event_open",
    "userfaultfd": "userfaultfd",
    "io_uring": "io_uring_setup",
    "kernel modules": "init_module",
    "kexec": "kexec_load",
    "reboot": "reboot",
    "the clock": "clock_settime",
    "the host name": "sethostname",
    "setuid": "setuid",
    "setgroups": "setgroups",
    "capset": "capset",
    "open_by_handle_at": "open_by_handle_at",
    "syslog": "syslog",
    "swapon": "swapon",
    "acct": "acct",
    "a filter of its own": "seccomp",
    "vmsplice": "vmsplice",
    "a number no kernel has": "",
}


@pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED)
def test_a_dangerous_system_call_is_refused(attack: Attack, name: str) -> None:
    number = NUMBERS[name] if name else 3000

    assert attack(f"return call({number}, -1, -1, -1, -1, -1, -1)").result in {"EPERM", "ENOSYS"}


@pytest.mark.parametrize("flag", [0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000])
def test_clone_into_a_new_namespace_is_refused(attack: Attack, flag: int) -> None:
    # Without SIGCHLD in the flags a child that was made after all would be seen as a result of 0 or more.
    assert attack(f"return call({NUMBERS['clone']}, {flag}, 0, 0, 0, 0)").result == "EPERM"


def test_clone3_looks_absent_so_that_libraries_fall_back(attack: Attack) -> None:
    # Its flags lie in memory, where no filter can look.
    assert attack(f"return call({NUMBERS['clone3']}, 0, 0)").result == "ENOSYS"


def test_high_bits_of_an_argument_do_not_hide_it_from_the_filter(attack: Attack) -> None:
    # CVE-2019-10063: the kernel reads an int, so the filter must not compare 64 bits.
    outcome = attack(
        f"return [call({NUMBERS['ioctl']}, 0, (1 << 32) | 0x5412, 0), call({NUMBERS['socket']}, (1 << 32) | 16, 3, 0)]"
    )

    assert outcome.result == ["EPERM", "EAFNOSUPPORT"]


@pytest.mark.skipif(not X86_64, reason="32-bit and x32 entry exist on x86-64 only")
def test_32_bit_entry_kills_the_caller(attack: Attack) -> None:
    # Under the other convention the same numbers mean other calls.
    outcome = attack("""
import mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')  # mov eax, 20; int 0x80; ret
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
return ctypes.CFUNCTYPE(ctypes.c_int)(address)()
""")

    assert outcome.code == "GUEST_CRASHED"


@pytest.mark.skipif(not X86_64, reason="32-bit and x32 entry exist on x86-64 only")
def test_x32_numbers_are_refused(attack: Attack) -> None:
    outcome = attack("return call(0x40000000 | 39)")

    assert outcome.code == "GUEST_CRASHED" or outcome.result in {"ENOSYS", "EPERM"}


def test_every_capability_set_is_empty_and_the_locks_are_on(attack: Attack) -> None:
    outcome = attack(
        "return dict(l.split(':\\t', 1) for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)"
    )

    status = outcome.result
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"1000"}


@pytest.mark.parametrize(
    "change", ["os.setuid(0)", "os.setgid(0)", "os.setgroups([0])", "os.chown('/tmp', 0, 0)", "os.setresuid(0, 0, 0)"]
)
def test_becoming_somebody_else_is_refused(attack: Attack, change: str) -> None:
    assert attack(f"return attempt(lambda: {change})").result == "EPERM"


def test_undumpability_and_securebits_cannot_be_taken_back(attack: Attack) -> None:
    outcome = attack(
        f"return [call({NUMBERS['prctl']}, *a) for a in ((4, 1, 0, 0, 0), (28, 0, 0, 0, 0), (1, 0, 0, 0, 0))]"
    )

    assert outcome.result == ["EPERM", "EPERM", "EPERM"]


def test_no_core_dump_is_asked_for(attack: Attack) -> None:
    # 1, not 0: for a core_pattern that is a pipe the kernel takes 0 for no limit of its business.
    outcome = attack("import resource\nreturn resource.getrlimit(resource.RLIMIT_CORE)")

    assert max(outcome.result) <= 1


def test_raising_a_limit_is_refused(attack: Attack) -> None:
    outcome = attack("""
import resource
tried = []
for name in ("CORE", "NPROC", "NOFILE", "AS", "FSIZE"):
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (resource.RLIM_INFINITY,) * 2)
        tried.append('WORKED')
    except (ValueError, OSError):
        tried.append('refused')
return tried
""")

    assert outcome.result == ["refused"] * 5


def test_sysctls_and_kernel_files_of_proc_are_not_there(attack: Attack) -> None:
    # proc is mounted with subset=pid: only processes.
    names = [
        "sys",
        "sys/kernel/core_pattern",
        "sysrq-trigger",
        "kcore",
        "keys",
        "kallsyms",
        "cmdline",
        "mounts/../../sys",
    ]
    outcome = attack(f"return [attempt(lambda: open('/proc/' + n).read()) for n in {names!r}]")

    assert set(outcome.result) <= {"ENOENT", "EACCES"}


def test_the_environment_is_the_sandboxes_own(attack: Attack) -> None:
    outcome = attack("return [dict(os.environ), attempt(lambda: open('/proc/self/environ').read())]")

    assert "secret" not in repr(outcome.result)
    assert not [name for name in outcome.result[0] if name.startswith("ENCLAVE")]


def test_no_descriptor_of_the_worker_is_inherited(attack: Attack) -> None:
    outcome = attack("""
import stat
held = {}
for fd in range(256):
    try:
        held[fd] = oct(stat.S_IFMT(os.fstat(fd).st_mode))
    except OSError:
        pass
return held
""")

    # Nothing, stdout, stderr, the worker's socket; asyncio's own (an epoll and a socket pair) are the guest's.
    kinds = outcome.result
    assert {fd: kinds[fd] for fd in ("0", "1", "2", "3")} == {
        "0": "0o20000",
        "1": "0o10000",
        "2": "0o10000",
        "3": "0o140000",
    }
    assert len(kinds) <= 7


def test_the_host_name_and_the_namespaces_are_not_the_hosts(attack: Attack) -> None:
    assert attack("return os.uname().nodename").result == "sandbox"
