"""The file of sources: every form of it, and every mistake told with its place."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from enclave_broker.tools import Secrets
from enclave_broker.tools.sources import Sources, ToolsFileError, load_sources, read_tools_file
from enclave_broker.tools.sources.tools_file import openapi_option, parse_tools_file

TOML = """
[openapi.pets]
document = "pets.json"
exclude = ["DELETE *"]
needs_approval = ["pets_set*"]
auth = { type = "api-key", secret = "PET_KEY", in = "query", name = "key" }

[http.weather]
url = "https://api.example/{city}"
headers = { Authorization = "Bearer ${WEATHER_KEY}" }
timeout_ms = 5000

[mcpServers.files]
command = "files-server"
args = ["--root", "."]
env = { TOKEN = "${FILES_TOKEN}" }

[mcpServers.files.enclave]
max_concurrency = 2
"""


def parsed(document: dict[str, Any]) -> Any:
    return parse_tools_file(document, "f.toml", Path("/somewhere"))


def test_a_toml_file_holds_all_kinds(tmp_path: Path) -> None:
    path = tmp_path / "tools.toml"
    path.write_text(TOML)
    file = read_tools_file(path)
    assert file.openapi["pets"].document == str(tmp_path / "pets.json"), "relative to the file"
    assert file.openapi["pets"].credentials().query["key"].text == "${PET_KEY}"
    assert file.http["weather"].policies().timeout_ms == 5000
    assert file.mcp_servers["files"].enclave.policies().max_concurrency == 2
    sources = Sources()
    sources.add_file(file)
    assert sources.secrets() == {"PET_KEY", "WEATHER_KEY", "FILES_TOKEN"}
    assert sources.needing_approval() == ["pets"]


def test_the_mcp_servers_file_of_other_programs_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    servers = {
        "a": {"command": "npx", "args": ["-y", "x"], "type": "stdio", "autoApprove": ["y"]},
        "b": {"type": "http", "url": "https://x.example/mcp", "headers": {"Authorization": "Bearer ${T}"}},
        "c": {"command": "z", "disabled": True},
    }
    path.write_text(json.dumps({"mcpServers": servers}))
    file = read_tools_file(path)
    assert file.mcp_servers["b"].url == "https://x.example/mcp"
    sources = Sources()
    sources.add_file(file)
    assert [source.name for source in sources.make(Secrets({}))] == ["a", "b"]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "it is empty"),
        ({"mcp": {}}, r"unknown table 'mcp' \(allowed: \[openapi.NAME\]"),
        ({"openapi": 5}, "openapi is no table"),
        ({"openapi": {"x y": {}}}, r"\[openapi.x y\]: 'x y' is no name"),
        ({"openapi": {"python": {"document": "x"}}}, "the name 'python' is taken"),
        ({"openapi": {"p": {}}}, r"\[openapi.p\], document: missing"),
        ({"openapi": {"p": {"document": "x", "exlude": []}}}, r"unknown field `exlude` \(allowed: .*exclude"),
        ({"openapi": {"p": {"document": "x", "timeout_ms": 0}}}, r"\[openapi.p\], timeout_ms: Expected `int` >= 1"),
        ({"openapi": {"p": {"document": "x", "base_url": "x"}}}, "base_url: 'x' is no http"),
        ({"openapi": {"p": {"document": "x", "base_url": "http://a:b@c"}}}, "has a password in it"),
        ({"openapi": {"p": {"document": "https://a:b@c/d"}}}, "document: .* has a password in it"),
        ({"openapi": {"p": {"document": "ftp://c/d"}}}, "document: .* is no http"),
        ({"openapi": {"p": {"document": "x", "auth": {"type": "digest", "secret": "S"}}}}, "auth.type: Invalid enum"),
        ({"openapi": {"p": {"document": "x", "auth": {"type": "bearer"}}}}, "auth.secret: missing"),
        ({"openapi": {"p": {"document": "x", "auth": {"type": "bearer", "secret": "a b"}}}}, "auth.secret: "),
        (
            {"openapi": {"p": {"document": "x", "auth": {"type": "api-key", "secret": "S", "name": "a:b"}}}},
            "auth.name: 'a:b' is no name of a header",
        ),
        ({"openapi": {"p": {"document": "x", "headers": {"A": "$B"}}}}, "headers.A: "),
        ({"openapi": {"p": {"document": "x", "headers": {"A\r\nB": "x"}}}}, "is no name of a header"),
        ({"mcpServers": {"m": {}}}, "either `command` or `url`"),
        ({"mcpServers": {"m": {"command": "x", "url": "http://y"}}}, "either `command` or `url`"),
        ({"mcpServers": {"m": {"url": "y"}}}, "url: 'y' is no http"),
        ({"mcpServers": {"m": {"command": "x", "env": {"A": "${B:-c}"}}}}, "A: .* the name of a secret"),
        ({"mcpServers": {"m": {"command": "x", "enclave": {"wrong": 1}}}}, "unknown field `wrong`"),
    ],
)
def test_a_mistake_is_told_with_its_table_its_field_and_what_is_allowed(document: Any, says: str) -> None:
    with pytest.raises(ToolsFileError, match=says):
        parsed(document)


def test_a_file_that_cannot_be_read_or_is_neither_form_is_told(tmp_path: Path) -> None:
    with pytest.raises(ToolsFileError, match="cannot be read"):
        read_tools_file(tmp_path / "gone.toml")
    (tmp_path / "bad").write_text("= what")
    with pytest.raises(ToolsFileError, match="neither TOML nor JSON"):
        read_tools_file(tmp_path / "bad")


def test_a_program_gives_the_tables_of_a_file_as_they_are() -> None:
    sources = Sources()
    sources.add_tables({"http": {"w": {"url": "https://x.example", "headers": {"A": "${KEY}"}}}})
    assert sources.secrets() == {"KEY"}
    with pytest.raises(ToolsFileError, match="unknown table 'htp'"):
        sources.add_tables({"htp": {}})


def test_an_endpoint_that_makes_no_sense_is_told_when_its_source_is_made() -> None:
    sources = Sources()
    sources.add_file(parsed({"http": {"w": {"url": "https://{host}/"}}}))
    with pytest.raises(ToolsFileError, match=r"\[http.w\], url: "):
        sources.make(Secrets({}))


def test_two_sources_of_one_name_are_refused() -> None:
    sources = Sources()
    sources.add_openapi("a", openapi_option("a=x.json")[1])
    with pytest.raises(ToolsFileError, match="two sources are called 'a'"):
        sources.add_file(parsed({"mcpServers": {"a": {"command": "x"}}}))


@pytest.mark.parametrize("text", ["", "pets", "=x", "pets=", "a b=x", "http=x"])
def test_an_openapi_option_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ToolsFileError, match="--openapi"):
        openapi_option(text)


def test_tools_that_need_approval_are_refused_where_nobody_can_approve(tmp_path: Path) -> None:
    path = tmp_path / "tools.toml"
    path.write_text('[http.w]\nurl = "https://x.example"\nneeds_approval = true\n')
    with pytest.raises(ValueError, match="'w' need approval"):
        load_sources((), [path], Secrets({}))
    assert load_sources((), [path], Secrets({}), can_approve=True)


def test_without_the_mcp_library_an_mcp_server_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "enclave_broker.tools.sources.mcp_source", raising=False)
    monkeypatch.setitem(sys.modules, "mcp", None)
    sources = Sources()
    sources.add_file(parsed({"mcpServers": {"m": {"command": "x"}}}))
    with pytest.raises(ToolsFileError, match=r"pip install 'enclave\[mcp\]'"):
        sources.make(Secrets({}))
