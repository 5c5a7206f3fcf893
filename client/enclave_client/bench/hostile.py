"""What guests do: the kinds of session, good and hostile, that a soak mixes and that a benchmark has for neighbours."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

_FORGE = """
import json, os, struct
def frame(message, size=None):
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body) if size is None else size) + body
"""
FORK_BOMB = """
import os
print("on")
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
MEMORY_BOMB = """
print("on")
held = []
while True:
    held.append(b"x" * (1 << 20))
"""
STDOUT_FLOOD = """
import os
print("on")
flood = b"x" * 65535 + b"\\n"
while True:
    os.write(1, flood)
"""
SPIN = """
print("on")
while True:
    pass
"""
NEIGHBOURS = {"fork bomb": FORK_BOMB, "memory bomb": MEMORY_BOMB, "stdout flood": STDOUT_FLOOD, "spin loop": SPIN}
"""The four that a good session has to bear; each prints once when it is about to begin."""

_SHORT_MS = 250
"""How long what never ends by itself may go on: there are thousands of them."""
_STRUCK = frozenset(
    {"DEADLINE_EXCEEDED", "CPU_LIMIT_EXCEEDED", "PROCESS_LIMIT_EXCEEDED", "MEMORY_LIMIT_EXCEEDED", "GUEST_CRASHED"}
)
"""How something that uses too much may end: which limit strikes first is the host's and the level's to decide."""

Way = Literal["to the end", "cancel", "leave"]


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of session."""

    name: str
    code: str
    share: int
    """How many of a hundred sessions are of this kind, about."""
    endings: frozenset[str]
    """How it may end: `OK`, or a code of the `final`."""
    limits: dict[str, Any] = {}
    way: Way = "to the end"
    """Whether its client reads to the end, cancels after the first output, or hangs up there."""


def _good(name: str, share: int, code: str) -> Kind:
    return Kind(name=name, code=code, share=share, endings=frozenset({"OK"}))


def _hostile(name: str, share: int, code: str, *endings: str, **limits: Any) -> Kind:
    return Kind(name=name, code=code, share=share, endings=frozenset(endings), limits=limits)


KINDS = (
    _good("sum", 30, "return 1 + 1"),
    _good("prints and imports", 10, "import json\nprint('out')\nreturn json.loads('2')"),
    _good("child process", 3, "import subprocess\nreturn subprocess.run(['/bin/sh', '-c', 'exit 2']).returncode"),
    _good("tool calls", 6, "return [await call_tool('bench_echo', {'value': n}) for n in range(3)]"),
    _good("big result", 3, "return 'x' * 1_000_000"),
    _hostile("syntax error", 5, "x = = 1", "SYNTAX_ERROR"),
    _hostile("exception", 5, "raise ValueError('no')", "EXECUTION_ERROR"),
    _hostile("fork bomb", 3, FORK_BOMB, *_STRUCK, deadlineMs=_SHORT_MS),
    _hostile("memory bomb", 3, MEMORY_BOMB, *_STRUCK, deadlineMs=5000, memoryLimitBytes=128 << 20),
    _hostile("stdout flood", 4, STDOUT_FLOOD, *_STRUCK, deadlineMs=_SHORT_MS),
    _hostile("spin loop", 4, SPIN, *_STRUCK, deadlineMs=_SHORT_MS),
    _hostile("crash", 4, "import ctypes\nctypes.string_at(0)", "GUEST_CRASHED"),
    _hostile("exit", 3, "import os\nos.fork()\nos._exit(3)", "GUEST_CRASHED"),
    _hostile("garbage on its socket", 3, "import os\nos.write(3, b'\\xff' * 100)\nwhile True: pass", "GUEST_CRASHED"),
    _hostile(
        "forged call and result",
        3,
        _FORGE + "os.write(3, frame({'type': 'tool_call', 'id': 9, 'name': 'x', 'args': 1})"
        " + frame({'type': 'result', 'value': 'forged'}) * 2)\nwhile True: pass",
        "OK",
    ),
    _hostile(
        "half a frame",
        2,
        _FORGE + "os.write(3, frame(1, size=1 << 20))\nwhile True: pass",
        *_STRUCK,
        deadlineMs=_SHORT_MS,
    ),
    _hostile("closed socket", 2, "import os\nos.close(3)\nwhile True: pass", "GUEST_CRASHED"),
    Kind(name="cancelled", code=SPIN, share=4, endings=frozenset({"SESSION_CANCELLED"}), way="cancel"),
    Kind(
        name="client gone",
        code="print('on')\nimport asyncio\nawait asyncio.sleep(1000)",
        share=3,
        endings=frozenset({"SESSION_CANCELLED"}),
        way="leave",
    ),
)
