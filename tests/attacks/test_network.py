"""A guest's network namespace has a loopback interface of its own and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Attack, Listener


def test_a_service_on_the_hosts_loopback_is_out_of_reach(attack: Attack, tcp_listener: Listener) -> None:
    outcome = attack(f"return attempt(lambda: socket.create_connection({tcp_listener.address!r}, timeout=2))")

    assert outcome.result == "ECONNREFUSED"


def test_an_abstract_socket_of_the_host_is_out_of_reach(attack: Attack, abstract_listener: Listener) -> None:
    # Abstract names belong to the network namespace.
    outcome = attack(f"return attempt(lambda: socket.socket(socket.AF_UNIX).connect({abstract_listener.address!r}))")

    assert outcome.result == "ECONNREFUSED"


@pytest.mark.parametrize("address", [("1.1.1.1", 443), ("169.254.169.254", 80), ("10.0.0.1", 22), ("8.8.8.8", 53)])
def test_an_address_outside_has_no_route(attack: Attack, address: tuple[str, int]) -> None:
    outcome = attack(f"return attempt(lambda: socket.create_connection({address!r}, timeout=2))")

    assert outcome.result == "ENETUNREACH"


def test_datagrams_have_no_route_either(attack: Attack) -> None:
    outcome = attack(
        "return attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53)))"
    )

    assert outcome.result == "ENETUNREACH"


def test_names_do_not_resolve(attack: Attack) -> None:
    outcome = attack("""
try:
    return socket.getaddrinfo('example.com', 80)
except socket.gaierror as error:
    return 'unresolved'
""")

    assert outcome.result == "unresolved"


@pytest.mark.parametrize(
    ("family", "kind"),
    [(16, 3), (17, 3), (38, 5), (40, 1), (44, 3), (21, 5), (31, 3), (29, 3)],
    ids=["netlink", "packet", "alg", "vsock", "xdp", "rds", "bluetooth", "can"],
)
def test_a_socket_of_a_strange_family_is_refused(attack: Attack, family: int, kind: int) -> None:
    # The system call filter: families that reach the hypervisor or kernel code no guest needs.
    assert attack(f"return attempt(lambda: socket.socket({family}, {kind}))").result == "EAFNOSUPPORT"


def test_a_raw_socket_is_refused(attack: Attack) -> None:
    # By the system call filter; without it, for want of a capability.
    outcome = attack("return [attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, p)) for p in (1, 6, 255)]")

    assert outcome.result == ["EPROTONOSUPPORT"] * 3


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [(1, 262), (1, 132), (5, 132), (5, 0), (6, 33), (6, 0), (2, 136), (2, 115), (1, 256), (2, 1), (10, 3)],
    ids=[
        *("mptcp", "sctp stream", "sctp", "sctp by its type", "dccp", "dccp by its type"),
        *("udp-lite", "l2tp", "smc", "ping", "packet by its type"),
    ],
)
def test_an_internet_socket_of_a_strange_protocol_is_refused(attack: Attack, kind: int, protocol: int) -> None:
    # Each is kernel code that no guest needs, and that the kernel would load a module for.
    outcome = attack(f"return [attempt(lambda: socket.socket(f, {kind}, {protocol})) for f in (2, 10)]")

    assert outcome.result == ["EPROTONOSUPPORT"] * 2


def test_tcp_and_udp_by_name_work(attack: Attack) -> None:
    outcome = attack("""
return [attempt(lambda: socket.socket(family, kind, protocol).close())
        for family in (socket.AF_INET, socket.AF_INET6)
        for kind, protocol in ((socket.SOCK_STREAM, socket.IPPROTO_TCP), (socket.SOCK_DGRAM, socket.IPPROTO_UDP))]
""")

    assert outcome.result == ["WORKED: None"] * 4


def test_the_sandboxes_own_loopback_works(attack: Attack) -> None:
    outcome = attack("""
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept()
client.sendall(b'x')
return peer.recv(1).decode()
""")

    assert outcome.result == "x"


def test_a_listener_inside_is_not_reachable_from_another_sandbox(attack: Attack) -> None:
    attack(
        "socket.create_server(('127.0.0.1', 45678))\nimport os\nif os.fork() == 0:\n    import time; time.sleep(100)"
    )

    assert (
        attack("return attempt(lambda: socket.create_connection(('127.0.0.1', 45678), timeout=2))").result
        == "ECONNREFUSED"
    )
