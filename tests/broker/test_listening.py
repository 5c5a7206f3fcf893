"""The socket that a broker listens on."""

from __future__ import annotations

import socket

import pytest

from enclave_broker import PortInUse
from enclave_broker.listening import listen


def test_a_port_that_another_program_has_is_said_so() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 is in use"):
            listen("127.0.0.1", port)


def test_answers_on_a_connection_that_is_used_again_wait_for_no_acknowledgement() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getpeername() == client.getsockname()
