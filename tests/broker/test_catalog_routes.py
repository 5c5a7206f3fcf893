"""`/code/actions` and `/code/stubs`."""

from __future__ import annotations

import ast

from tests.broker.conftest import fleet
from tests.broker.sample_tools import add, greet_somebody
from tests.fakes import FakeWorker


async def test_the_catalogue_and_its_stubs_describe_the_tools() -> None:
    worker = FakeWorker()
    async with fleet(worker, tools=[add, greet_somebody]) as running:
        catalog = (await running.http.get("/code/actions")).json()
        assert [action["name"] for action in catalog["actions"]] == ["add", "greet"]
        assert catalog["actions"][0]["inputSchema"]["required"] == ["a"]
        assert [service["name"] for service in catalog["services"]] == ["python"]
        python = await running.http.get("/code/stubs")
        assert python.headers["content-type"] == "text/plain; charset=utf-8"
        ast.parse(python.text)
        assert catalog["version"] in python.text
        typescript = await running.http.get("/code/stubs", params={"language": "typescript", "service": "python"})
        assert 'callTool(name: "add", args: AddArgs)' in typescript.text


async def test_a_language_or_a_service_that_is_none_is_told() -> None:
    worker = FakeWorker()
    async with fleet(worker, tools=[add]) as running:
        for path, field, allowed in (
            ("/code/stubs?language=cobol", "language", "python, typescript"),
            ("/code/stubs?service=pets", "service", "python"),
            ("/code/actions?service=pets", "service", "python"),
        ):
            refused = await running.http.get(path)
            assert refused.status_code == 400
            assert (refused.json()["details"]["field"], refused.json()["details"]["allowed"]) == (field, allowed)
