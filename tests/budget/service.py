"""Traces for the program that measures, which asks over a socket: see `tracer` for why it can't be that program itself.

That program is our child and what it starts are its own, so that all are below us: a kernel that lets nobody trace but
those above (Yama) lets us.
"""

from __future__ import annotations

import compileall
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .table import Measured
from .tracer import Tracer

_PATIENCE_S = 60.0
_LOOK_MS = 5
_QUIET_S = 0.12
"""Longer than the longest timer that a session leaves behind: the broker acknowledges its events after 100 ms."""
_BORN = {"zygote": "sandbox"}
_SANDBOX = "sandbox"


class CannotMeasureError(Exception):
    """The machine lets nobody trace, or is too busy for a fleet to come to rest: nothing is known of what it costs."""


class _Service:
    def __init__(self, asker: socket.socket, in_order: str) -> None:
        self._asker = asker
        self._tracer = Tracer(_BORN, in_order)
        self._awaited = -1  # sandboxes that there must be before we say that all is quiet; -1 if nobody waits
        self._doings = -1
        self._since_s = self._deadline_s = 0.0
        self.refused = ""
        """Why nobody can be traced, empty if that is not so."""

    def serve(self) -> None:
        """Trace and answer until the asker is gone."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._asker, select.POLLIN)
        poll.register(reader, select.POLLIN)
        while True:
            for fd, _ in poll.poll(_LOOK_MS if self._awaited >= 0 else None):
                if fd == reader:
                    os.read(reader, 4096)
                elif not self._take(self._asker.recv(65536)):
                    return
            self._tracer.step()
            if self._awaited >= 0:
                self._look()

    def _take(self, packet: bytes) -> bool:
        if not packet:
            return False
        request = json.loads(packet)
        if "seize" in request:
            try:
                for pid, role in request["seize"]:
                    self._tracer.seize(pid, role)
            except OSError as error:
                self.refused = str(error)
            self._answer(refused=self.refused)
        else:
            self._awaited = request["quiet"]
            self._since_s = time.monotonic()
            self._deadline_s = self._since_s + _PATIENCE_S
        return True

    def _look(self) -> None:
        tracer, now_s = self._tracer, time.monotonic()
        if now_s > self._deadline_s:
            self._awaited = -1
            self._answer(restless=repr(tracer))
        elif tracer.count(_SANDBOX) != self._awaited or tracer.doings != self._doings:
            self._doings, self._since_s = tracer.doings, now_s
        elif now_s - self._since_s > _QUIET_S and tracer.asleep():
            self._awaited = -1
            calls, ended = tracer.take()
            self._answer(calls=calls, ended=[vars(one) for one in ended])

    def _answer(self, **message: Any) -> None:
        self._asker.send(json.dumps(message).encode())


def measure() -> Measured:
    """Run `tests.budget.measure`, and return what it found. Takes all this process's children for its own.

    Raises:
        CannotMeasureError: the machine does not allow it.
        RuntimeError: the program that measures is broken.
    """
    return Measured(**_ask_program([], ""))


def in_order() -> list[tuple[str, int]]:
    """Return the system calls of a sandbox from its fork to its death, each with the page faults up to it.

    Raises what `measure` raises.
    """
    found: list[tuple[str, int]] = _ask_program(["--in-order"], _SANDBOX)["order"]
    return found


def _ask_program(arguments: list[str], in_order: str) -> dict[str, Any]:
    root = Path(__file__).parents[2]
    # A zygote that had to compile a module has more memory than one that found it compiled.
    compileall.compile_dir(root / "worker" / "enclave_worker" / "zygote", quiet=2)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.budget.measure", str(theirs.fileno()), *arguments]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, cwd=root) as process:
        theirs.close()
        service = _Service(ours, in_order)
        service.serve()
        assert process.stdout is not None
        printed = process.stdout.read()
    if service.refused:
        raise CannotMeasureError(f"nobody may trace: {service.refused}")
    if not printed:
        raise RuntimeError("the program that measures has failed, and said why")
    found: dict[str, Any] = json.loads(printed)
    if "failure" in found:
        raise CannotMeasureError(found["failure"])
    return found
