"""What a guest writes, on its way to becoming events."""

from __future__ import annotations

import codecs
from typing import Literal

from enclave_protocol import events as ev

Stream = Literal["stdout", "stderr"]

_Decoder = codecs.getincrementaldecoder("utf-8")


class Output:
    """One stream's bytes on their way to becoming events: decoded, counted, cut."""

    def __init__(self, stream: Stream, cap_bytes: int) -> None:
        self.event = ev.Stdout if stream == "stdout" else ev.Stderr
        self.stream = stream
        self.cap_bytes = cap_bytes
        self.total_bytes = 0
        self._decoder: codecs.IncrementalDecoder | None = None  # most guests print nothing

    @property
    def cut(self) -> bool:
        """Whether more was written than is passed on."""
        return self.total_bytes > self.cap_bytes

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
