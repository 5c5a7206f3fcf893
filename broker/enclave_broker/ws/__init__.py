"""The WebSocket doors: `/ws` for browsers and agents, `/workers` for workers that dial in."""

from .route import create_ws_route
from .transport import socket_protocol
from .workers import WorkersDoor, create_workers_route

__all__ = ["WorkersDoor", "create_workers_route", "create_ws_route", "socket_protocol"]
