"""The API's description, taken at its word: whatever it allows is asked, and much that it does not."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from tests.broker.conftest import fleet
from tests.fakes import FakeWorker

if TYPE_CHECKING:
    from pathlib import Path

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


async def test_no_request_that_can_be_made_of_the_description_breaks_the_broker_or_surprises_its_reader(
    tmp_path: Path,
) -> None:
    async with fleet(FakeWorker()) as running:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{running.broker.url}/docs/openapi.json"]
        command += ["--max-examples", "15", "--checks", CHECKS, "--request-timeout", "60"]
        # The same requests in every run, however long it takes to think of them.
        command += ["--generation-deterministic", "--suppress-health-check", "all"]
        command += ["--exclude-path-regex", "/drain$"]  # they do what they say, and the rest would find no fleet
        process = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        told, _ = await process.communicate()

        assert process.returncode == 0, told.decode()
        await running.wait_until(lambda: running.broker.dispatcher.directory.live == 0)
        assert running.broker.dispatcher.placer.statistics().reserved == 0
