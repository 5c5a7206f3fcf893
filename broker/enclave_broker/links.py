"""The broker's one connection to a worker, kept up for ever.

Theory of operation. `run` dials, waits for `hello`, reports `link_up`, and then has three jobs until one of them
fails: read frames and hand them over, write what `send` buffered, and ping. The failure's reason is reported as
`link_down` before anything slow is closed; then it dials again, with a delay that doubles up to a limit and is spread
at random, so that a fleet does not come back in step.

With a worker of revision 1, its sessions are gone with the connection. One of revision 2 is answered by `welcome`, the
first message to it, keeps events until they are acknowledged (`acks`), and its sessions until it is back.

A fault of the broker's own while it handles what a worker sent costs that connection, never the others, nor the broker:
it is logged, and the link dials again.

A worker is dead when it was silent for `dead_after_s`; any frame is a sign of life, and every `pong` says how busy it
is. Silence is counted in ping intervals that this program was awake for: a broker that was itself stopped for a
minute must not take its whole fleet for dead when it wakes up.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import UNSET

from enclave_protocol import (
    Drain,
    Hello,
    Ping,
    Pong,
    Rejection,
    RemoteProtocolError,
    Welcome,
    decode_worker_message,
    encode,
    peek,
)
from enclave_protocol.events import PROTOCOL_VERSION
from enclave_protocol.logs import about
from enclave_protocol.revisions import NEWEST_REVISION, OLDEST_REVISION, RESUMING_REVISION, common_revision

from .acks import Acks

if TYPE_CHECKING:
    from enclave_protocol.messages import Envelope

    from .channels import Dial, Transport
    from .config import BrokerConfig

log = logging.getLogger("enclave.broker.link")

FAULT = "the broker failed at what it sent: its log says how"
"""Why a connection was given up that is not to blame, as far as anybody is told who does not run the broker."""


class LinkHandler(Protocol):
    """Who is told. None of these may block."""

    @property
    def broker_id(self) -> str:
        """What the broker calls itself."""

    def link_up(self, link: Link, hello: Hello) -> None:
        """The worker said hello, and was welcomed if it resumes."""

    def link_down(self, link: Link, reason: str) -> None:
        """The connection is gone. Comes once for every `link_up`."""

    def link_refused(self, link: Link, reason: str) -> None:
        """Nothing listens where the worker is dialled."""

    def link_unfit(self, link: Link) -> None:
        """The worker said hello, and speaks nothing that this broker does."""

    def link_event(self, link: Link, envelope: Envelope, line: bytes) -> None:
        """An event of a session."""

    def link_pong(self, link: Link, pong: Pong) -> None:
        """How busy the worker is."""

    def link_draining(self, link: Link, reason: str) -> None:
        """The worker takes no new sessions from now on."""

    def link_rejection(self, link: Link, rejection: Rejection) -> None:
        """The worker refused a message of ours."""


HEARD_INTERVALS = 2
"""Ping intervals of silence after which another connection may take the place of one: it seems to be half open."""

Admit = Callable[["Link", Hello], str | None]
"""Says why a worker that said hello is not used on this link; None if it is."""


class LinkDown(Exception):  # noqa: N818 - a fact about the worker, not a fault of ours
    """The connection is of no more use; the text says why."""


class Link:
    """One worker's connection.

    Args:
        name: what the placer calls the worker: its URL.
        dial: opens a connection.
        handler: who is told.
        config: intervals and sizes.
        admit: asked about each hello before anybody is told of it.
    """

    def __init__(
        self, name: str, dial: Dial, handler: LinkHandler, config: BrokerConfig, *, admit: Admit | None = None
    ) -> None:
        self.name = name
        self.up = False
        self.retiring = False
        """Whether its worker gets no new sessions, whatever it says itself."""
        self.hello: Hello | None = None
        self.revision = 1
        """What both ends of the connection speak, see `enclave_protocol.revisions`."""
        self.acks = Acks(self.send)
        """What the worker need not keep any more."""
        self._unfit = ""  # why the worker was not used when it last said hello
        self._transport: Transport | None = None
        self._dial = dial
        self._handler = handler
        self._config = config
        self._admit = admit
        self._outgoing: deque[tuple[bytes, int]] = deque()  # and how much each counts
        self._outgoing_bytes = 0
        self._something_to_write = asyncio.Event()
        self._overflowed = asyncio.Event()
        self._cut = ""
        self._silent_intervals = 0

    @property
    def about(self) -> dict[str, Any]:
        """What a log record about the worker is about."""
        return about(worker_id="" if self.hello is None else self.hello.worker_id)

    @property
    def worker_id(self) -> str:
        """What the worker calls itself; its URL as long as it said nothing."""
        return self.name if self.hello is None else self.hello.worker_id

    def __repr__(self) -> str:
        return f"<Link {self.name} {'up' if self.up else 'down'} outgoing={self._outgoing_bytes}>"

    def send(self, message: bytes) -> None:
        """Send a message, or buffer it. Without a connection it is dropped: what matters is sent again on the next.

        A worker that leaves more than `link_buffer_bytes` unread is taken for dead.
        """
        if not self.up or self._overflowed.is_set():
            return
        self._put(message, len(message))

    def send_again(self, message: bytes) -> None:
        """Send what somebody keeps to send it again. That is much at once after an attach, and can't overflow."""
        if self.up and not self._overflowed.is_set():
            self._put(message, 0)

    def _put(self, message: bytes, counted_bytes: int) -> None:
        if not self._outgoing and self._transport is not None and self._transport.send_now(message):
            return
        self._outgoing.append((message, counted_bytes))
        self._outgoing_bytes += counted_bytes
        self._something_to_write.set()
        if self._outgoing_bytes > self._config.link_buffer_bytes:
            self._overflowed.set()

    @property
    def settled(self) -> bool:
        """Whether the worker was sent all that there is to say."""
        return not self._outgoing and not self.acks.waiting

    @property
    def resumes(self) -> bool:
        """Whether the worker's sessions outlive the connection."""
        return self.revision >= RESUMING_REVISION and self.instance is not None

    @property
    def instance(self) -> str | None:
        """Which of its lives the worker is in; None if it does not say."""
        return None if self.hello is None else self.hello.instance or None

    @property
    def heard(self) -> bool:
        """Whether the worker was heard of within the last two ping intervals, on a connection that there is."""
        return self.up and self._silent_intervals < HEARD_INTERVALS

    def cut(self, reason: str) -> None:
        """End the connection that there is, for a reason that is known here."""
        if self.up:
            self._cut = reason
            self._overflowed.set()

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        failures = 0
        while True:
            try:
                was_up, reason = await self._live()
            except Exception:  # one worker's link must not end the others
                log.exception("worker %s: a fault in its link", self.name, extra=self.about)
                was_up, reason = False, FAULT
            failures = 1 if was_up else failures + 1
            if was_up:
                log.warning("worker %s lost: %s; reconnecting", self.name, reason, extra=self.about)
            elif failures == 1:
                log.warning("worker %s unreachable: %s; retrying until it answers", self.name, reason, extra=self.about)
            await asyncio.sleep(self._delay_s(failures))

    async def _live(self) -> tuple[bool, str]:
        """Live through one connection; returns whether the worker said hello, and why it ended."""
        try:
            transport = await self._dial()
        except ConnectionRefusedError as error:
            self._handler.link_refused(self, str(error))
            return False, str(error)
        except ConnectionError as error:
            return False, str(error)
        try:
            hello = await self._hello(transport)
        except LinkDown as down:
            await transport.close()
            return False, str(down)
        except BaseException:
            await transport.close()
            raise
        return True, await self._serve(transport, hello)

    async def _serve(self, transport: Transport, hello: Hello) -> str:
        reason = "the broker is stopping"
        self._reset(hello)
        self._transport = transport
        log.info("worker %s up: %d slots, level %s", self.name, hello.max_sessions, hello.level, extra=self.about)
        if self.revision >= RESUMING_REVISION:
            self.send(encode(Welcome(revision=self.revision, broker_id=self._handler.broker_id)))
        try:
            self._handler.link_up(self, hello)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write(transport))
                group.create_task(self._watch())
                await self._read(transport)
        except* LinkDown as downs:
            reason = str(downs.exceptions[0])
        except* Exception:
            log.exception("worker %s: a fault in the handling of what it sent", self.name, extra=self.about)
            reason = FAULT
        finally:
            self.up = False
            self._transport = None
            self._outgoing.clear()
            self.acks.clear()
            try:
                self._handler.link_down(self, reason)
            finally:
                await transport.close()
        return reason

    def _reset(self, hello: Hello) -> None:
        self.hello = hello
        self.up = True
        self._unfit = ""
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self._something_to_write.clear()
        self._overflowed.clear()
        self._cut = ""
        self._silent_intervals = 0

    async def _hello(self, transport: Transport) -> Hello:
        try:
            async with asyncio.timeout(self._config.hello_timeout_s):
                message = decode_worker_message(await transport.recv())
        except TimeoutError:
            raise LinkDown("connected, but it did not say hello: is it an enclave-runtime?") from None
        except (ConnectionError, EOFError) as error:
            raise LinkDown(str(error)) from error
        except RemoteProtocolError as error:
            raise LinkDown(f"its first message is no hello ({error}): is it an enclave-runtime?") from error
        if not isinstance(message, Hello):
            raise LinkDown("its first message is no hello: is it an enclave-runtime?")
        if message.protocol_version != PROTOCOL_VERSION:
            raise LinkDown(f"it speaks protocol {message.protocol_version}, this broker {PROTOCOL_VERSION}")
        self.revision = self._common_revision(message)
        refused = None if self._admit is None else self._admit(self, message)
        if refused is not None:
            raise LinkDown(refused)
        return message

    def _common_revision(self, hello: Hello) -> int:
        revision = common_revision(hello)
        if revision is not None:
            return revision
        reason = (
            f"it speaks revisions {hello.min_revision} to {hello.max_revision} of the link, "
            f"this broker {OLDEST_REVISION} to {NEWEST_REVISION}: upgrade the older one"
        )
        self._handler.link_unfit(self)
        if reason != self._unfit:  # it is tried again for ever, and told of once
            log.error("worker %s can't be used: %s", self.name, reason, extra=about(worker_id=hello.worker_id))
        self._unfit = reason
        raise LinkDown(reason)

    async def _read(self, transport: Transport) -> None:
        while True:
            try:
                line = await transport.recv()
            except (ConnectionError, EOFError) as error:
                raise LinkDown(str(error)) from error
            self._silent_intervals = 0
            self._dispatch(line)

    def _dispatch(self, line: bytes) -> None:
        try:
            envelope = peek(line)
            if envelope.seq is not UNSET:
                self._handler.link_event(self, envelope, line)
                return
            message = decode_worker_message(line)
        except RemoteProtocolError as error:
            log.warning("worker %s sent something unreadable: %s", self.name, error, extra=self.about)
            return
        if isinstance(message, Pong):
            self._handler.link_pong(self, message)
        elif isinstance(message, Rejection):
            self._handler.link_rejection(self, message)
        elif isinstance(message, Drain):
            self._handler.link_draining(self, message.reason or "")

    async def _write(self, transport: Transport) -> None:
        while True:
            await self._something_to_write.wait()
            self._something_to_write.clear()
            while self._outgoing:
                message, counted_bytes = self._outgoing.popleft()
                self._outgoing_bytes -= counted_bytes
                try:
                    await transport.send(message)
                except (ConnectionError, EOFError) as error:
                    raise LinkDown(str(error)) from error

    async def _watch(self) -> None:
        """Ping, and notice silence and a worker that does not read."""
        interval_s = self._config.ping_interval_s
        while True:
            self.send(encode(Ping(timestamp=round(time.time() * 1000))))
            try:
                async with asyncio.timeout(interval_s):
                    await self._overflowed.wait()
            except TimeoutError:
                self._silent_intervals += 1
                if self._silent_intervals * interval_s >= self._config.dead_after_s:
                    raise LinkDown(f"silent for {self._config.dead_after_s:g} s") from None
            else:
                raise LinkDown(self._cut or f"left more than {self._config.link_buffer_bytes} bytes unread")

    def _delay_s(self, failures: int) -> float:
        longest = min(self._config.reconnect_max_s, self._config.reconnect_min_s * 2 ** min(failures - 1, 20))
        return float(longest * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing
