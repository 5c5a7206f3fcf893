"""A guest's clocks run, and not on from the host's. Who looks for the difference finds it: see docs/sandbox.md."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from enclave_worker.zygote.kernel import can_set_clocks

if TYPE_CHECKING:
    from .conftest import Attack

needs_own_clocks = pytest.mark.skipif(not can_set_clocks(), reason="no time namespace to be had here")

ASK = """
import time
libc = ctypes.CDLL(None)
class Sysinfo(ctypes.Structure):
    _fields_ = [('uptime', ctypes.c_long), ('rest', ctypes.c_char * 128)]
info = Sysinfo()
libc.sysinfo(ctypes.byref(info))
started = int(open('/proc/self/stat').read().rpartition(')')[2].split()[19]) / os.sysconf('SC_CLK_TCK')
names = ('CLOCK_MONOTONIC', 'CLOCK_MONOTONIC_RAW', 'CLOCK_MONOTONIC_COARSE', 'CLOCK_BOOTTIME')
return [info.uptime, started, time.monotonic(), *(time.clock_gettime(getattr(time, name, 4)) for name in names)]
"""


@needs_own_clocks
def test_asking_for_the_hosts_uptime_gives_the_zygotes(attack: Attack) -> None:
    before = min(time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))

    clocks = attack(ASK).result

    assert max(clocks) < before
    assert min(clocks) >= 0


def test_the_offsets_of_the_clocks_cannot_be_changed(attack: Attack) -> None:
    write = "open(f'/proc/{process}/timens_offsets', 'w').write('monotonic 99 0')"
    outcome = attack(f"return [attempt(lambda: {write}) for process in ('self', '1')]")

    assert not [result for result in outcome.result if result.startswith("WORKED")]


def test_every_way_to_wait_for_a_time_ends_after_that_time(attack: Attack) -> None:
    # The kernel has to translate deadlines: one that it took for the host's would be long past, or never come.
    outcome = attack("""
import asyncio, select, threading, time
waits = {
    'sleep': lambda: time.sleep(0.02),
    'asyncio': lambda: asyncio.run(asyncio.sleep(0.02)),
    'futex': lambda: threading.Event().wait(0.02),
    'lock': lambda: threading.Lock().acquire() and (l := threading.Lock()).acquire() and l.acquire(timeout=0.02),
    'poll': lambda: select.poll().poll(20),
    'select': lambda: select.select([], [], [], 0.02),
    'epoll': lambda: select.epoll().poll(0.02),
    'timer': lambda: (t := threading.Timer(0.02, int), t.start(), t.join()),
}
early = []
for name, wait in waits.items():
    started = time.monotonic()
    wait()
    if time.monotonic() - started < 0.019:
        early.append(name)
return early
""")

    assert outcome.result == []
