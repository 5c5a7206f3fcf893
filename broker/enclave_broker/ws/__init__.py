"""The WebSocket door `/ws`, for browsers and agents."""

from .handshake import bearer_token
from .route import create_ws_route
from .transport import socket_protocol

__all__ = ["bearer_token", "create_ws_route", "socket_protocol"]
