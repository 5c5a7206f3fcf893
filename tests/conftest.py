"""Fixtures of the tests that run a real worker."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import hypothesis
import pytest
import pytest_asyncio

from enclave_worker.config import RuntimeConfig
from enclave_worker.footing import find_footing
from enclave_worker.zygote import kernel
from tests.support import Client, client_of, nothing_left, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from enclave_worker.runtime import RuntimeWorker

_MS_REC, _MS_PRIVATE = 0x4000, 0x40000


def pytest_configure() -> None:
    """Have every worker of the tests hold the best level that this machine gives, unless somebody chose one."""
    os.environ.setdefault("ENCLAVE_LEVEL", "BEST")
    _leave_mounts_of_others()
    # Property tests state what holds, not how fast: on a loaded machine Hypothesis's own deadlines would fail them.
    # They try the same in each run, which so fails for a change only; `--hypothesis-profile=explore` goes further.
    untimed = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
    hypothesis.settings.register_profile("explore", untimed)
    hypothesis.settings.register_profile("same", untimed, derandomize=True)
    hypothesis.settings.load_profile("same")
    # A shell has what it starts in the background ignore SIGINT, nohup SIGHUP, and the tests' programs inherit it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _leave_mounts_of_others() -> None:
    """Take a mount namespace of our own, if we may: what other programs of the host mount meanwhile is no leak."""
    with contextlib.suppress(OSError):
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount(None, b"/", None, _MS_REC | _MS_PRIVATE)


def pytest_report_header() -> str:
    """Say which level that is: a suite that ran on less than SECURE has shown less."""
    footing = find_footing(RuntimeConfig())
    footing.close()
    lacking = "".join(f", without {layer} ({reason})" for layer, reason in footing.lacking.items())
    return f"security level: {footing.level.name}{lacking}"


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail the test if descriptors, processes, threads, mounts or control groups are left in the end."""
    with nothing_left():
        yield


@pytest_asyncio.fixture
async def worker(no_leaks: None) -> AsyncIterator[RuntimeWorker]:  # noqa: ARG001 - it surrounds this one
    """A running worker."""
    async with running() as runtime:
        yield runtime


@pytest_asyncio.fixture
async def client(worker: RuntimeWorker) -> AsyncIterator[Client]:
    """A connection to `worker`."""
    async with client_of(worker.url) as client:
        yield client
