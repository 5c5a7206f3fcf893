"""Pages that a fork copies at once. In programs of their own: what is looked at is a whole process's memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRELUDE = """
import contextlib, ctypes, mmap, os, sys
from enclave_worker.zygote import hot_pages

PAGE = os.sysconf("SC_PAGE_SIZE")
area = mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
area[:] = b"x" * len(area)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))

def unshared_in_a_fork(*writes_to):
    "The numbers of the pages of `area` that a fork has for itself."
    reader, writer = os.pipe()
    proc = os.open("/proc", os.O_PATH)
    areas = hot_pages.writable(proc)
    if not os.fork():
        observer = hot_pages.Observer(proc, areas)
        for page in writes_to:
            area[page * PAGE] = 1
        rows = [row for row in observer.unshared() if start <= row[0] < start + len(area)]
        pages = [page for page in range(8) for at, size in rows if at <= start + page * PAGE < at + size]
        os.write(writer, repr(pages).encode())
        os._exit(0)
    os.close(writer)
    os.close(proc)
    os.wait()
    return eval(os.read(reader, 1000))
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_fork_knows_the_pages_that_it_wrote_to() -> None:
    assert run("print(unshared_in_a_fork(2, 3, 6))") == "[2, 3, 6]"


def test_a_fork_has_pinned_pages_for_itself_though_it_wrote_to_none() -> None:
    said = run("""
try:
    hot_pages.pin(hot_pages.pack([(start + PAGE, 2 * PAGE), (start + 5 * PAGE, PAGE)]))
except OSError as error:
    print("refused:", error)
else:
    print(unshared_in_a_fork(), unshared_in_a_fork())
""")
    if said.startswith("refused"):
        pytest.skip(said)
    assert said == "[1, 2, 5] [1, 2, 5]"


@pytest.mark.parametrize("ranges", ["[]", "[(PAGE, PAGE)]"])
def test_what_cannot_be_pinned_is_refused_and_shared_as_ever_and_leaves_no_descriptor(ranges: str) -> None:
    said = run(f"""
before = os.listdir("/proc/self/fd")
with contextlib.suppress(OSError):
    hot_pages.pin(hot_pages.pack({ranges}))
    print("pinned")
print(os.listdir("/proc/self/fd") == before, unshared_in_a_fork())
""")
    assert said == "True []"
