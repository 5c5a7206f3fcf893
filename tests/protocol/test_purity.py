"""Who may import whom: the protocol is pure, and broker and worker know each other by the wire alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FORBIDDEN = {
    "protocol": {"enclave_broker", "enclave_worker", "enclave_client", "asyncio", "socket", "time", "websockets"},
    "worker": {"enclave_broker", "enclave_client"},
    "broker": {"enclave_worker", "enclave_client"},
}
"""Per source directory, the packages that nothing in it may import, at the top of a module or inside a function."""

_LOADED = """
import sys
import enclave_protocol
loaded = {name.partition(".")[0] for name in sys.modules}
print(*sorted(loaded & {"asyncio", "socket", "selectors", "ssl", "enclave_broker", "enclave_worker", "enclave_client"}))
"""


def test_importing_the_protocol_loads_no_event_loop_no_socket_and_none_of_our_other_packages() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", _LOADED], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


def imported(source: str) -> set[str]:
    """Top-level names of everything that a module imports absolutely, wherever and however it says so."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("directory", FORBIDDEN)
def test_a_package_imports_nothing_across_its_border(directory: str) -> None:
    files = sorted((ROOT / directory).rglob("*.py"))
    assert files, f"no sources in {directory}: the test looks in the wrong place"
    crossings = {str(file.relative_to(ROOT)): imported(file.read_text()) & FORBIDDEN[directory] for file in files}
    assert {file: names for file, names in crossings.items() if names} == {}


def test_the_search_for_imports_finds_every_way_to_say_one() -> None:
    source = """
import a.b, c as d
from e.f import g
from . import h
def later():
    from i import j
    importlib.import_module("k.l")
    __import__("m")
if TYPE_CHECKING:
    import n
"""
    assert imported(source) == {"a", "c", "e", "i", "k", "m", "n"}
