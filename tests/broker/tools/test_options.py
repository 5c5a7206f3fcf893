"""The options of `enclave-broker` about tools, in the program itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from click.testing import CliRunner

from enclave_broker.cli import main
from tests.fakes import FakeSession, FakeWorker

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
import asyncio
import logging
import os
from enclave_broker import ToolContext, tool

@tool(secrets=["KEY", "OTHER"], needs_approval=True)
def leak(context: ToolContext) -> dict:
    logging.getLogger("some.library").warning("header: %s", context.secrets["KEY"])
    return {"secrets": dict(context.secrets), "environment": "ENCLAVE_SECRET_KEY" in os.environ}

@tool(needs_approval=True)
def pay() -> None: ...

@tool
async def stubborn() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def approve(request):
    return request.tool == "leak"
"""


PROGRAM = "from enclave_broker.cli import main; main()"


async def calls_all(session: FakeSession) -> None:
    results = [await session.call(name, {}, call_id=f"c_{name}") for name in ("leak", "pay")]
    await session.event("tool_call", {"callId": "c_3", "toolName": "stubborn", "args": {}})
    await session.final(results)


async def test_the_program_keeps_its_secrets_asks_for_approval_and_stops_beside_a_stubborn_tool(
    tmp_path: Path,
) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    (tmp_path / "secrets.json").write_text('{"KEY": "loses-to-the-environment", "OTHER": "other-secret"}')
    arguments = ["--tools", "shop", "--secrets", "secrets.json", "--approve", "shop:approve", "--audit-log", "audit"]
    environment = {**os.environ, "ENCLAVE_SECRET_KEY": "hunter2-hunter2"}
    async with FakeWorker(calls_all) as worker:
        broker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, "--port", "0", "--worker", worker.url, *arguments),
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert broker.stdout is not None
            url = (await broker.stdout.readline()).split()[3].decode()
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                answer = await http.post("/sessions", json={"code": "1"})
        finally:
            broker.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                _, errors = await broker.communicate()
    final: dict[str, Any] = json.loads(answer.text.splitlines()[-1])["payload"]
    leaked, paid = final["result"]
    shown = {"KEY": "[secret:KEY]", "OTHER": "[secret:OTHER]"}
    assert leaked["value"] == {"secrets": shown, "environment": False}
    assert paid["error"]["code"] == "APPROVAL_REFUSED"
    assert broker.returncode == 0
    assert b"header: [secret:KEY]" in errors
    assert b"hunter2" not in errors
    audit = [json.loads(line)["outcome"] for line in (tmp_path / "audit").read_text().splitlines()]
    assert audit == ["ok", "APPROVAL_REFUSED", "SESSION_ENDED"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--secrets", "no-such-file"], "secrets no-such-file: No such file"),
        (["--approve", "json:dumps"], "'json:dumps': is no async function"),
        (["--audit-log", "no/such/directory"], "audit log no/such/directory: No such file"),
    ],
)
def test_what_can_not_be_loaded_is_named(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    done = CliRunner().invoke(main, ["--worker", "ws://127.0.0.1:1/ws", *arguments])
    assert done.exit_code == 2
    assert message in done.output
