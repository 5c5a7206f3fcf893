"""The system call filter, run by a small interpreter of its own: what it answers to every call and argument."""

from __future__ import annotations

import errno
import functools
import struct

import pytest

from enclave_worker.sandbox import seccomp
from enclave_worker.sandbox.policy import ALLOWED, DENIED, PROBED, UNCOUNTED, names
from enclave_worker.sandbox.seccomp import ARCHITECTURES, BY_ARGUMENT, compile_filter

ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSE = {name: 0x00050000 | getattr(errno, name) for name in ("EPERM", "ENOSYS", "EAFNOSUPPORT", "EPROTONOSUPPORT")}
MACHINES = sorted(ARCHITECTURES)


@functools.cache
def compiled(machine: str, *, counted: bool = True) -> list[seccomp.Instruction]:
    program = compile_filter(machine, memory_is_counted=counted)
    return [seccomp.Instruction(*fields) for fields in struct.iter_unpack("HBBI", program)]


def answer(machine: str, number: int, *arguments: int, audit: int | None = None, counted: bool = True) -> int:
    """Run the program on one call, as the kernel does."""
    program = compiled(machine, counted=counted)
    audit = ARCHITECTURES[machine].audit if audit is None else audit
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<iIQ6Q", number, audit, 0, *(argument % 2**64 for argument in padded))
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == seccomp._RETURN:
            return value
        if code == seccomp._LOAD:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == seccomp._AND:
            accumulator &= value
        elif code == seccomp._JUMP:
            at += value
        else:
            test = {
                seccomp._EQUAL: accumulator == value,
                seccomp._GREATER_EQUAL: accumulator >= value,
                seccomp._ANY_BIT: bool(accumulator & value),
            }[code]
            at += if_true if test else if_false


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    """Each machine there is a table for."""
    name: str = request.param
    return name


def test_every_known_call_gets_what_the_policy_says(machine: str) -> None:
    allowed, denied = names(ALLOWED), names(DENIED)
    for name, number in ARCHITECTURES[machine].numbers.items():
        if name in BY_ARGUMENT:
            continue
        expected = ALLOW if name in allowed else REFUSE["EPERM"] if name in denied - PROBED else REFUSE["ENOSYS"]
        assert answer(machine, number) == expected, name


def test_no_call_is_allowed_that_has_no_reason_to_be(machine: str) -> None:
    known = ARCHITECTURES[machine].numbers
    unlisted = known.keys() - names(ALLOWED) - names(DENIED)

    assert unlisted <= {"epoll_ctl_old", "epoll_wait_old", "get_thread_area", "set_thread_area"}
    assert {answer(machine, known[name]) for name in unlisted} <= {REFUSE["ENOSYS"]}
    assert not names(ALLOWED) & names(DENIED)
    assert BY_ARGUMENT.keys() <= names(ALLOWED)
    assert names(DENIED) >= PROBED
    assert names(UNCOUNTED) <= names(ALLOWED)


def test_memory_that_nobody_counts_is_refused(machine: str) -> None:
    for name in names(UNCOUNTED):
        assert answer(machine, ARCHITECTURES[machine].numbers[name]) == ALLOW
        assert answer(machine, ARCHITECTURES[machine].numbers[name], counted=False) == REFUSE["EPERM"]


def test_every_number_without_a_name_is_absent(machine: str) -> None:
    known = set(ARCHITECTURES[machine].numbers.values())
    for number in {*range(1000), 2**30 - 1} - known:
        assert answer(machine, number) == REFUSE["ENOSYS"], number


def test_another_architectures_entry_kills(machine: str) -> None:
    assert answer(machine, 0, audit=0x40000003) == KILL


def test_x32_numbers_never_pass() -> None:
    for number in ARCHITECTURES["x86_64"].numbers.values():
        assert answer("x86_64", 0x40000000 | number) in {KILL, REFUSE["ENOSYS"], REFUSE["EPERM"]}


def test_clone_may_make_threads_and_processes_but_no_namespace(machine: str) -> None:
    clone = ARCHITECTURES[machine].numbers["clone"]
    assert answer(machine, clone, 17) == ALLOW
    assert answer(machine, clone, 0x3D0F00) == ALLOW
    for flag in (0x80, 0x20000, *(1 << bit for bit in range(25, 31))):
        assert answer(machine, clone, 17 | flag) == REFUSE["EPERM"], hex(flag)


@pytest.mark.parametrize("name", ["socket", "socketpair"])
def test_sockets_are_unix_and_internet_only(machine: str, name: str) -> None:
    number = ARCHITECTURES[machine].numbers[name]
    allowed = {family for family in range(64) if answer(machine, number, family, 1) == ALLOW}
    assert allowed == {1, 2, 10}
    assert answer(machine, number, 16 | 1 << 32, 1) == REFUSE["EAFNOSUPPORT"]


@pytest.mark.parametrize("name", ["socket", "socketpair"])
@pytest.mark.parametrize("family", [2, 10])
def test_internet_sockets_are_tcp_and_udp_only(machine: str, name: str, family: int) -> None:
    number = ARCHITECTURES[machine].numbers[name]
    cloexec_nonblock = 0o2004000
    for kind in range(16):
        for protocol in range(512):
            allowed = kind in {1, 2} and protocol in {0, 6, 17}
            expected = ALLOW if allowed else REFUSE["EPROTONOSUPPORT"]
            assert answer(machine, number, family, kind | cloexec_nonblock, protocol) == expected, (kind, protocol)
    assert answer(machine, number, family, 1, 262 | 1 << 32) == REFUSE["EPROTONOSUPPORT"]


def test_unix_sockets_are_of_any_type(machine: str) -> None:
    for name in ("socket", "socketpair"):
        number = ARCHITECTURES[machine].numbers[name]
        assert {answer(machine, number, 1, kind, protocol) for kind in range(16) for protocol in (0, 1)} == {ALLOW}


@pytest.mark.parametrize("request_number", [0x5412, 0x541C, 0x5412 | 1 << 32])
def test_typing_into_a_terminal_is_refused(machine: str, request_number: int) -> None:
    ioctl = ARCHITECTURES[machine].numbers["ioctl"]
    assert answer(machine, ioctl, 0, request_number) == REFUSE["EPERM"]
    assert answer(machine, ioctl, 0, 0x5401) == ALLOW


def test_prctl_keeps_what_holds_the_locks(machine: str) -> None:
    prctl = ARCHITECTURES[machine].numbers["prctl"]
    assert {option for option in range(80) if answer(machine, prctl, option) != ALLOW} == set(seccomp.PRCTL_DENIED)


def test_only_what_pid_1_would_not_hear_is_kept_from_it(machine: str) -> None:
    numbers = ARCHITECTURES[machine].numbers
    for signal_number in range(65):
        unheard = signal_number in {9, 19}
        assert answer(machine, numbers["kill"], 1, signal_number) == (REFUSE["EPERM"] if unheard else ALLOW)
        assert answer(machine, numbers["kill"], 2, signal_number) == ALLOW
        assert answer(machine, numbers["tgkill"], 1, 1, signal_number) == (REFUSE["EPERM"] if unheard else ALLOW)
        assert answer(machine, numbers["tkill"], 5, signal_number) == ALLOW


def test_the_program_fits_the_kernels_limit(machine: str) -> None:
    assert len(compile_filter(machine, memory_is_counted=True)) // 8 <= 4096


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(KeyError):
        compile_filter("vax", memory_is_counted=True)
