"""The worker's side of its zygote's socket. A zygote runs our code alone; one that talks nonsense is ended.

The worker lives and keeps no descriptor of it, and whoever has or waits for a sandbox of its hears of the end once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_protocol import SandboxError
from enclave_worker.slots import Slot
from enclave_worker.zygote_process import ZygoteProcess
from tests.worker.guest_socket import same_descriptors, turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from enclave_worker.output import Stream
    from enclave_worker.sandbox_process import Sandbox
    from enclave_worker.usage import Exit


class Home:
    """Where sandboxes come from here; it only counts how they end."""

    def __init__(self) -> None:
        self.exits: list[Sandbox] = []

    def on_exit(self, sandbox: Sandbox, exit_: Exit) -> None:
        self.exits.append(sandbox)

    def on_frame(self, sandbox: Sandbox, body: bytes) -> None:
        """No guest speaks here."""

    def on_broken(self, sandbox: Sandbox, reason: str) -> None:
        """No guest speaks here."""

    def on_hangup(self, sandbox: Sandbox) -> None:
        """The fake zygote closes the guest's ends at once."""

    def on_output(self, sandbox: Sandbox, stream: Stream, data: bytes) -> bool:
        return False

    def on_dropped(self, sandbox: Sandbox, stream: Stream, size_bytes: int) -> None:
        """No guest writes here."""

    def on_oom(self, sandbox: Sandbox) -> None:
        """Nothing counts memory here."""

    def retire(self, sandbox: Sandbox) -> None:
        """Nobody takes a sandbox here."""

    def released(self, sandbox: Sandbox) -> None:
        """Nobody takes a sandbox here."""


class FakeZygote:
    """The far end of a zygote's socket, with a process that can be killed behind it."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # It swallows what it is asked for, and leaves when the worker lets go of it, as a zygote does.
        self.process = subprocess.Popen(["/bin/cat"], stdin=self.socket.fileno(), stdout=subprocess.DEVNULL)
        self.deaths: list[str] = []
        self.raised: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.raised.append(context))
        self.handle = ZygoteProcess(self.process, ours, lambda _, reason: self.deaths.append(reason))
        self.home = Home()
        self.sandboxes = [self.handle.spawn(number, Slot(number, 0), self.home) for number in (1, 2)]

    async def say(self, packet: bytes, descriptors: int = 0) -> None:
        """Send a packet, with what belongs to a sandbox or more or less than that."""
        guest, host = socket.socketpair()
        reader, writer = os.pipe()
        pidfd = os.pidfd_open(self.process.pid)
        ends = [host.fileno(), reader, reader, pidfd, reader, reader][:descriptors] if descriptors != 2 else [pidfd] * 2
        with contextlib.suppress(OSError):  # the worker has let go of it
            socket.send_fds(self.socket, [packet], ends)
        guest.close()
        host.close()
        for end in (reader, writer, pidfd):
            os.close(end)
        await turns()


@contextlib.asynccontextmanager
async def fake_zygote() -> AsyncIterator[FakeZygote]:
    zygote = FakeZygote()
    try:
        yield zygote
        await zygote.handle.stop()
    finally:
        zygote.socket.close()
        zygote.process.kill()
        zygote.process.wait()
    assert zygote.raised == []
    assert len(zygote.deaths) <= 1
    assert all(zygote.home.exits.count(sandbox) == 1 for sandbox in zygote.sandboxes)


def packet(**fields: object) -> bytes:
    return msgspec.json.encode(fields)


packets = st.one_of(
    st.sampled_from([(packet(type="spawned", id=number), 4) for number in (1, 2)]),
    st.tuples(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["spawned", "exited", "unspawned", "prepared", "failed", "ready"])},
            optional={
                "id": st.integers(-1, 3),
                "status": st.integers(0, 70_000) | st.none(),
                "cpu_ms": st.floats(allow_nan=False, allow_infinity=False),
                "reason": st.text(max_size=5),
                "step": st.text(max_size=5) | st.integers(),
            },
        ).map(msgspec.json.encode),
        st.integers(0, 6),
    ),
    st.tuples(st.binary(min_size=1, max_size=30), st.integers(0, 6)),
    st.just((b"[" * 100_000, 1)),
)


async def _converse(said: list[tuple[bytes, int]]) -> None:
    async with fake_zygote() as zygote:
        for data, descriptors in said:
            await zygote.say(data, descriptors)
        if zygote.handle._prepared.done():
            zygote.handle._prepared.exception()


@settings(max_examples=100, deadline=None)
@given(st.lists(packets, min_size=1, max_size=5))
def test_no_packet_of_a_zygote_raises_in_the_worker_or_leaves_it_a_descriptor(said: list[tuple[bytes, int]]) -> None:
    with same_descriptors():
        asyncio.run(_converse(said))


@pytest.mark.parametrize(
    ("nonsense", "descriptors"),
    [
        (b"nonsense", 0),
        (b"\xff", 0),
        (b"[" * 60_000, 0),
        (packet(type="spawned", id=1), 4),
        (packet(type="spawned", id=3), 4),
        (packet(type="exited", id=3), 0),
        (packet(type="exited", id="1"), 0),
        (packet(type="unspawned", id=-1), 0),
        (packet(type="prepared"), 1),
        (packet(type="else"), 0),
    ],
    ids=repr,
)
async def test_a_zygote_that_talks_nonsense_is_killed_and_its_sandboxes_are_reported(
    nonsense: bytes, descriptors: int
) -> None:
    with same_descriptors():
        async with fake_zygote() as zygote:
            await zygote.say(packet(type="prepared"), 2)
            await zygote.say(packet(type="spawned", id=1), 4)
            assert zygote.deaths == []

            await zygote.say(nonsense, descriptors)

            assert ["makes no sense" in reason for reason in zygote.deaths] == [True]
            assert zygote.process.wait() != 0
            await turns()
            assert set(zygote.home.exits) == set(zygote.sandboxes)


async def test_nonsense_from_a_zygote_that_is_not_prepared_yet_is_why_the_worker_does_not_start() -> None:
    async with fake_zygote() as zygote:
        await zygote.say(b"nonsense")

        with pytest.raises(SandboxError, match="makes no sense"):
            await zygote.handle._prepared
        assert zygote.deaths == []


async def test_the_descriptors_of_a_sandbox_are_not_inherited_by_programs_that_the_worker_starts() -> None:
    async with fake_zygote() as zygote:
        await zygote.say(packet(type="spawned", id=1), 4)
        sandbox = zygote.sandboxes[0]
        assert sandbox._control >= 0

        ours = [sandbox._control, sandbox._pidfd, *sandbox._pipes.values()]
        assert [os.get_inheritable(descriptor) for descriptor in ours] == [False] * 4
