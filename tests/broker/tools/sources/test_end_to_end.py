"""All kinds of sources, from the file that an operator writes to the code in a sandbox."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx

from enclave_broker import create_broker
from enclave_broker.tools import Secrets, ToolRegistry
from enclave_broker.tools.sources import load_sources
from tests.broker.tools.sources.http_server import Answer, http_server
from tests.support import running

CODE = """
pet = await call_tool("pets_getPet", {"id": 7})
sky = await call_tool("weather", {"city": "Bern"})
said = await call_tool("files_echo", {"a": 1})
try:
    await call_tool("pets_getPet", {"id": "seven"})
except ToolError as error:
    refused = error.code
try:
    await call_tool("pets_getPet", {"id": 404})
except ToolError as error:
    missing = error.code
return [pet, sky, said, refused, missing]
"""


async def test_code_calls_tools_of_every_source_and_sees_no_secret(tmp_path: Path) -> None:
    async with http_server() as server, running(max_sessions=1) as worker:
        identifier = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}
        document = {
            "openapi": "3.1.0",
            "paths": {"/pets/{id}": {"get": {"operationId": "getPet", "parameters": [identifier]}}},
        }
        server.routes["/openapi.json"] = lambda _: Answer(document)
        server.routes["/pets/7"] = lambda asked: Answer({"name": "Rex", "you sent": asked.header("x-api-key")})
        server.routes["/weather/Bern"] = lambda asked: Answer({"sun": True, "you sent": asked.header("authorization")})
        path = tmp_path / "tools.json"
        tools = {
            "openapi": {
                "pets": {"document": f"{server.url}/openapi.json", "auth": {"type": "api-key", "secret": "PET_KEY"}}
            },
            "http": {
                "weather": {
                    "url": f"{server.url}/weather/{{city}}",
                    "auth": {"type": "basic", "username": "me", "secret": "SKY_KEY"},
                }
            },
            "mcpServers": {
                "files": {
                    "command": sys.executable,
                    "args": ["-I", "-S", str(Path(__file__).with_name("mcp_legacy.py"))],
                }
            },
        }
        path.write_text(json.dumps(tools))
        secrets = Secrets({"PET_KEY": "secret-of-pets", "SKY_KEY": "secret-of-sk"})
        sources = load_sources((), [path], secrets)
        registry = ToolRegistry()
        async with (
            create_broker(runtimes=[worker.url], tools=registry, secrets=secrets, sources=sources, port=0) as broker,
            httpx.AsyncClient(base_url=broker.url, timeout=60) as client,
        ):
            catalog = await client.get("/code/actions")
            assert [service["name"] for service in catalog.json()["services"]] == ["files", "http", "pets"]
            stream = await client.post("/sessions", json={"code": CODE})
    assert json.loads(stream.text.splitlines()[-1])["payload"]["result"] == [
        {"name": "Rex", "you sent": "[secret:PET_KEY]"},
        {"sun": True, "you sent": "Basic bWU6[secret:SKY_KEY]"},
        '{"a": 1}',
        "VALIDATION_ERROR",
        "HTTP_404",
    ]
    assert "secret-of" not in stream.text + catalog.text
