"""What a guest writes, on its way to becoming events."""

from __future__ import annotations

import codecs
from typing import Literal

from enclave_protocol import events as ev

Stream = Literal["stdout", "stderr"]

_Decoder = codecs.getincrementaldecoder("utf-8")


class Capped:
    """What comes one way from the guest: counted, and cut where there is too much."""

    def __init__(self, way: Stream | Literal["log"], cap_bytes: int) -> None:
        self.way = way
        self.cap_bytes = cap_bytes
        self.total_bytes = 0

    @property
    def cut(self) -> bool:
        """Whether more came than is passed on."""
        return self.total_bytes > self.cap_bytes

    def mark(self) -> ev.LogPayload:
        """Return what marks the place where it is cut."""
        what, done = ("log messages are", "sent") if self.way == "log" else (f"{self.way} is", "written")
        message = f"{what} cut: more than maxStdoutBytes={self.cap_bytes} were {done}"
        evidence = {"limit": "maxStdoutBytes", "stream": self.way, "maxStdoutBytes": self.cap_bytes}
        return ev.LogPayload(level="warn", message=message, data=evidence)


class Output(Capped):
    """One stream's bytes on their way to becoming events: decoded as well."""

    def __init__(self, stream: Stream, cap_bytes: int) -> None:
        super().__init__(stream, cap_bytes)
        self.event = ev.Stdout if stream == "stdout" else ev.Stderr
        self._decoder: codecs.IncrementalDecoder | None = None  # most guests print nothing

    def feed(self, data: bytes) -> str:
        """Count what was written; return as much of it, as text, as is to be passed on now."""
        room = max(0, self.cap_bytes - self.total_bytes)
        self.total_bytes += len(data)
        if not room:
            return ""
        if self._decoder is None:
            self._decoder = _Decoder("replace")
        return self._decoder.decode(data[:room])

    def flush(self) -> str:
        """Return what an unfinished character at the very end stands for; beyond the cap it was cut on purpose."""
        return "" if self.cut or self._decoder is None else self._decoder.decode(b"", final=True)
