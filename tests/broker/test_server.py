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
