"""The WebSocket door `/ws`, for browsers and agents."""

from .route import create_ws_route
from .transport import socket_protocol

__all__ = ["create_ws_route", "socket_protocol"]
