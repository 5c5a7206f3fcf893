"""The API's own description."""

from __future__ import annotations

from tests.broker.conftest import fleet


async def test_every_body_is_described_to_its_last_field() -> None:
    async with fleet() as running:
        document = (await running.http.get("/docs/openapi.json")).json()
        schemas = document["components"]["schemas"]
        for path, name in (
            ("/sessions", "CreateSession"),
            ("/sessions:batch", "CreateBatch"),
            ("/sessions/{session_id}/tool-result", "AnswerCall"),
            ("/sessions/{session_id}/cancel", "CancelSession"),
        ):
            content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            assert content["schema"]["$ref"].endswith(f"/{name}")
        assert schemas["CreateSession"]["properties"]["filter"]["$ref"].endswith("/FilterConfig")
        assert schemas["EncryptionRequest"]["properties"]["clientHello"]["$ref"].endswith("/ClientHello")
        assert schemas["ContentPattern"]["properties"]["type"]["enum"] == ["exact", "glob", "prefix", "regex"]
        page = (await running.http.get("/docs")).text
        assert "/sessions:batch" in page
