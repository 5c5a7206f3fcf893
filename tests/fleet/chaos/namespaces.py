"""Hosts that can vanish: network namespaces, each joined to ours by a veth pair whose far end can be taken down.

Run as a program's module (`python -m enclave_client.child PID tests.fleet.chaos.namespaces NAME ARGUMENT...`), it
becomes a worker in the namespace NAME.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import sys

_CLONE_NEWNET = 0x40000000


class Namespace:
    """One host of its own. Ours: whoever makes it removes it.

    Args:
        number: 0 to 63, of those of this process.
    """

    def __init__(self, number: int) -> None:
        net = f"10.{64 + os.getpid() % 128}.{number}"
        self.name = f"{prefix()}{number}"
        self.address = f"{net}.2"
        self._ours = f"{net}.1"
        self._near, self._far = (f"ch{os.getpid()}{end}{number}" for end in "nf")

    async def make(self) -> None:
        """Make it, joined to us. Raises RuntimeError with what the kernel would not do."""
        await _ip("netns", "add", self.name)
        await _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name)
        await _ip("address", "add", f"{self._ours}/30", "dev", self._near)
        await _ip("link", "set", self._near, "up")
        await _ip("-netns", self.name, "address", "add", f"{self.address}/30", "dev", self._far)
        for link in ("lo", self._far):
            await _ip("-netns", self.name, "link", "set", link, "up")

    async def vanish(self) -> None:
        """Be away: packets to it and from it are lost, and nobody says so."""
        await _ip("-netns", self.name, "link", "set", self._far, "down")

    async def return_(self) -> None:
        """Be there again."""
        await _ip("-netns", self.name, "link", "set", self._far, "up")

    async def remove(self) -> None:
        """Remove it; the pair goes with it."""
        await _ip("netns", "delete", self.name)


def prefix() -> str:
    """Return how the names of this process's namespaces begin."""
    return f"chaos-{os.getpid()}-"


def lacking() -> str:
    """Say why there can be no namespaces here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    return "" if shutil.which("ip") else "network namespaces need the command ip (iproute2)"


async def _ip(*arguments: str) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("ip", *arguments, stdout=pipe, stderr=pipe)
    _, said = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {said.decode(errors='replace').strip()}")


def main() -> None:
    """Enter the namespace, and be a worker there."""
    from enclave_worker import cli  # noqa: PLC0415 - the module is also the harness's, which needs no worker

    name = sys.argv.pop(1)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns to {name}")
    os.close(fd)
    cli.main()
