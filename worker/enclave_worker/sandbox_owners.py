"""Who a sandbox works for, and what it tells them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .output import Stream
    from .sandbox_process import Sandbox
    from .usage import Exit


class Owner(Protocol):
    """Whoever a sandbox works for: the pool until it is taken, then a session."""

    def on_frame(self, sandbox: Sandbox, body: bytes) -> None:
        """The guest sent a frame; `body` is its JSON text."""

    def on_broken(self, sandbox: Sandbox, reason: str) -> None:
        """The guest's socket can't be understood, or it lets too much pile up."""

    def on_hangup(self, sandbox: Sandbox) -> None:
        """The guest closed its end of the control socket. It may have died; if so, `on_exit` is about to follow."""

    def on_output(self, sandbox: Sandbox, stream: Stream, data: bytes) -> bool:
        """Something was written; the answer says whether more of this stream is wanted (else it is thrown away)."""

    def on_dropped(self, sandbox: Sandbox, stream: Stream, size_bytes: int) -> None:
        """This many unwanted bytes were thrown away."""

    def on_oom(self, sandbox: Sandbox) -> None:
        """Its memory is used up, and the kernel has killed one of its processes, or is about to."""

    def on_exit(self, sandbox: Sandbox, exit_: Exit) -> None:
        """Every process of the sandbox is gone, and its pipes are drained, unless it was dismissed."""


class Home(Owner, Protocol):
    """Where a sandbox comes from, and who sees it out."""

    def retire(self, sandbox: Sandbox) -> None:
        """Kill a taken sandbox that nobody listens to any more."""

    def released(self, sandbox: Sandbox) -> None:
        """A taken sandbox has exited."""
