"""Code that imports nothing and awaits only tools runs in sandboxes of another zygote: the same locks hold there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from websockets.sync.client import connect

from tests.real_client import check_stream
from tests.support import PATIENCE_S

if TYPE_CHECKING:
    from .conftest import Target

# A class that knows the module os, found without a statement that would choose the other zygote.
OS = "os = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0].__init__.__globals__\n"


def run_bare(target: Target, code: str) -> dict[str, Any]:
    """Run code as it is: the prelude of the other attacks imports."""
    with connect(target.url, max_size=None, compression=None, close_timeout=1) as connection:
        connection.recv(PATIENCE_S)
        connection.send(msgspec.json.encode({"type": "execute", "code": code}).decode())
        lines: list[bytes] = []
        while not lines or b'"type":"final"' not in lines[-1][:40]:
            message = connection.recv(PATIENCE_S)
            lines.append(message.encode() if isinstance(message, str) else message)
    check_stream(lines)
    payload: dict[str, Any] = msgspec.json.decode(lines[-1])["payload"]
    return payload


def test_every_lock_is_on_in_a_bare_sandbox_too(target: Target) -> None:
    code = "return dict(l.split(':\\t', 1) for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)"

    status = run_bare(target, code)["result"]

    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Uid"].split()) == ("1", "2", ["1000"] * 4)


@pytest.mark.parametrize(
    ("attempt", "refusal"),
    [
        ("open('/etc/shadow')", "FileNotFoundError"),
        ("open('/usr/bin/planted', 'w')", "OSError"),
        ("os['setuid'](0)", "PermissionError"),
        ("os['kill'](1, 9)", "PermissionError"),
        ("os['kill'](2, 9)", "ProcessLookupError"),
        ("os['mknod']('/tmp/disk', 0o60600, 2048)", "PermissionError"),
        ("os['chroot']('/tmp')", "PermissionError"),
    ],
)
def test_a_bare_sandbox_refuses_the_same(target: Target, attempt: str, refusal: str) -> None:
    code = f"{OS}try:\n    {attempt}\nexcept OSError as error:\n    return type(error).__name__\nreturn 'WORKED'"

    assert run_bare(target, code)["result"] == refusal


def test_a_bare_sandbox_sees_the_same_root_and_nothing_of_the_workers(target: Target) -> None:
    code = OS + "return [os['listdir']('/workspace'), dict(os['environ']), os['getpid']()]"
    payload = run_bare(target, code)

    assert payload["ok"], payload
    files, environment, pid = payload["result"]
    assert (files, pid) == ([], 1)
    assert "secret" not in repr(environment)
