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


def test_a_raw_socket_needs_a_capability_nobody_has(attack: Attack) -> None:
    outcome = attack("return [attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, p)) for p in (1, 6, 255)]")

    assert outcome.result == ["EPERM", "EPERM", "EPERM"]


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
