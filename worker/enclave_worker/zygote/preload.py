"""What a zygote imports so that its guests need not, and what must not be the same in two of them.

Theory of operation. Everything is imported in the root that guests see, by its paths there: what a zygote can load they
can, and a zygote never runs a package with the host's files in reach. A fork copies only the thread that asks for it,
so a thread that a package started would be missing in every guest with its locks held for ever: packages are told to
make none, and a zygote that has one all the same refuses to serve.

A fork also copies random generators. `random` notices one; numpy's does not; OpenSSL and `tempfile` go by a process's
number, of which a sandbox's is always 1. So `reseed` is called in every sandbox, before its code is known.
"""

from __future__ import annotations

import os
import sys

from . import steps

STEP = "preload"
"""What the names of our steps begin with."""
_MEANWHILE = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1"),
    "NUMEXPR_NUM_THREADS": "1",
    "PATH": "/nonexistent",  # a zygote starts no programs (matplotlib would ask one for fonts)
}
"""The environment while packages are imported. The numbers of threads are read when a library is loaded, and never
again."""


def load(names: list[str]) -> None:
    """Import modules; raises StepFailed naming the one that can't be."""
    own = {name: os.environ.get(name) for name in _MEANWHILE}
    os.environ.update(_MEANWHILE)
    for name in names:
        try:
            if name == "asyncio":
                _without_ssl(name)
            else:
                __import__(name)
        except BaseException as error:  # noqa: BLE001 - a package may raise anything
            raise steps.StepFailed(f"{STEP} {name}", 0, f"{type(error).__name__}: {error}") from None
    for name, value in own.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value
    _forget_names()


def _without_ssl(name: str) -> None:
    """Import `name` as if there were no ssl: asyncio does without, and with it every fork is dearer."""
    hidden = "ssl" not in sys.modules
    if hidden:
        sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        __import__(name)
    finally:
        if hidden:
            del sys.modules["ssl"]  # a guest may still import it


def _forget_names() -> None:
    # Its names come from a generator that it replaces only in a process of another number.
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile._name_sequence = None  # type: ignore[attr-defined]  # noqa: SLF001 - there is no other way
        tempfile.tempdir = None  # type: ignore[attr-defined]


def require_one_thread() -> None:
    """Raise StepFailed if there is another thread than this one."""
    count = len(os.listdir("/proc/self/task"))
    if count != 1:
        raise steps.StepFailed(f"{STEP} with one thread", 0, f"what is preloaded has started {count - 1} more")


def reseed() -> None:
    """Give a freshly forked process randomness of its own."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    openssl = sys.modules.get("_ssl")
    if openssl is not None:
        openssl.RAND_add(os.urandom(48), 48.0)
