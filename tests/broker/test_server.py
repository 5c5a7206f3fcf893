"""The server inside the broker's process."""

from __future__ import annotations

import subprocess
import sys

_RAISED = """
import resource
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, most))
from enclave_broker.server import raise_descriptor_limit
raise_descriptor_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most))
"""


def test_the_broker_may_have_as_many_sockets_as_its_host_lets_it() -> None:
    done = subprocess.run([sys.executable, "-c", _RAISED], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True\n"


def test_a_plain_broker_loads_nothing_that_only_others_need() -> None:
    code = (
        "import sys; from enclave_broker import create_broker; from enclave_broker.http import create_app; "
        "create_app(create_broker(workers=['ws://127.0.0.1:1/ws'], port=0)); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    # Of those who have tools, filters, encryption, names for their workers; and of nobody's models.
    assert not loaded & {"jsonschema", "regex", "httpx", "mcp", "re2", "cryptography", "dns", "pydantic", "sqlite3"}
