"""Workers behind a name: its addresses and its SRV records, as they change, and as they fail."""

from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from enclave_broker import BrokerConfig
from enclave_broker.finding.urls import parse_server
from tests.broker.conftest import Fleet, fleet
from tests.broker.finding.name_server import NameServer
from tests.fakes import FakeWorker

if TYPE_CHECKING:
    from pathlib import Path

NAME = "workers.example"
SERVICE = f"_enclave._tcp.{NAME}"


def asking(server: NameServer, place: str, **settings: Any) -> dict[str, Any]:
    """Return settings of a broker that asks this server about a place, often."""
    return {"workers": [place], "dns_servers": [server.address], "dns_every_s": 0.01, **settings}


def names(running: Fleet) -> set[str]:
    return set(running.broker.dispatcher.fleet.links)


async def result_of(running: Fleet, code: str) -> Any:
    response = await running.http.post("/sessions", json={"code": code})
    return json.loads(response.text.splitlines()[-1])["payload"].get("result")


async def asked_again(running: Fleet, server: NameServer, times: int = 4) -> None:
    """Wait until the server was asked anew, so that what it says is known."""
    asked = server.asked
    await running.wait_until(lambda: server.asked >= asked + times)


async def test_every_address_of_a_name_is_a_worker_as_they_come_and_go() -> None:
    two = FakeWorker()
    async with NameServer() as server, FakeWorker() as one:
        two.host, two.port = "127.0.0.2", (port := one.port)
        server.records = {(NAME, "A"): [one.host]}
        async with two, fleet(**asking(server, f"dns+ws://{NAME}:{port}/ws")) as running:
            await running.wait_workers(1)
            server.records[NAME, "A"].append(two.host)
            server.records[NAME, "AAAA"] = ["::1"]
            await running.wait_workers(2)
            every = {f"ws://{host}:{port}/ws" for host in ("127.0.0.1", "127.0.0.2", "[::1]")}
            await running.wait_until(lambda: names(running) == every)
            assert await result_of(running, "1") == "1"
            del server.records[NAME, "AAAA"]
            server.records[NAME, "A"].remove(one.host)
            await running.wait_until(lambda: names(running) == {f"ws://127.0.0.2:{port}/ws"})
            await running.wait_workers(1)
            assert two.connections == 1


async def test_every_server_of_srv_records_is_a_worker_whatever_its_port() -> None:
    async with NameServer() as server, FakeWorker(name="a") as one, FakeWorker(name="b") as two:
        server.records = {(SERVICE, "SRV"): [f"0 5 {one.port} localhost."]}
        async with fleet(**asking(server, f"srv+ws://{SERVICE}/ws")) as running:
            await running.wait_workers(1)
            server.records[SERVICE, "SRV"].append(f"10 1 {two.port} LOCALHOST.")
            await running.wait_workers(2)
            server.records[SERVICE, "SRV"] = [f"0 5 {two.port} localhost."]
            await running.wait_until(lambda: names(running) == {f"ws://127.0.0.1:{two.port}/ws"})
            assert two.connections == 1


@pytest.mark.parametrize(
    "trouble", ["no such name", "no records", "failure", "half a failure", "silence", "bad record"]
)
async def test_without_an_answer_the_last_one_stays_in_force(trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    place = f"dns+ws://{NAME}" if trouble != "bad record" else f"srv+ws://{SERVICE}"
    asked_for = (SERVICE, "SRV") if trouble == "bad record" else (NAME, "A")
    async with NameServer() as server, FakeWorker() as worker:
        good = [f"0 0 {worker.port} localhost."] if trouble == "bad record" else [worker.host]
        server.records = {asked_for: good}
        place += "/ws" if trouble == "bad record" else f":{worker.port}/ws"
        # The first wait is dnspython's, for each try.
        settings = asking(server, place, dns_timeout_s=0.5 if trouble == "silence" else 5.0)
        async with fleet(**settings) as running:
            await running.wait_workers(1)
            before = names(running)
            if trouble == "no such name":
                server.records = {}
            elif trouble == "no records":
                server.records[asked_for] = []
            elif trouble == "failure":
                server.failing = {"A", "AAAA"}
            elif trouble == "half a failure":
                server.records[asked_for] = ["127.0.0.9"]
                server.failing = {"AAAA"}
            elif trouble == "silence":
                server.silent = True
            else:
                server.records[asked_for] = ["0 0 0 localhost."]
            await running.wait_until(lambda: running.metric("enclave_worker_source_stale", source=place) == 1)
            more = {f"ws://127.0.0.9:{worker.port}/ws"} if trouble == "half a failure" else set()
            # Who was named is there; who was not may be there, too, if not by the look that was on its way.
            await running.wait_until(lambda: names(running) == before | more)
            assert await result_of(running, "1") == "1"
            server.records, server.failing, server.silent = {asked_for: good}, set(), False
            await running.wait_until(lambda: running.metric("enclave_worker_source_stale", source=place) == 0)
            await running.wait_until(lambda: names(running) == before)
            assert worker.connections == 1
    said = [record.getMessage() for record in caplog.records if "the last list stays in force" in record.getMessage()]
    assert len(said) == 1


async def test_a_worker_on_the_list_and_behind_a_name_counts_once() -> None:
    async with NameServer() as server, FakeWorker() as worker:
        server.records = {(NAME, "A"): [worker.host]}
        settings = asking(server, f"dns+ws://{NAME}:{worker.port}/ws")
        settings["workers"] += [worker.url.replace("127.0.0.1", "localhost"), settings["workers"][0]]
        async with fleet(**settings) as running:
            await running.wait_workers(1)
            await asked_again(running, server)
            assert names(running) == {worker.url}
            assert worker.connections == 1


async def test_behind_a_name_the_certificate_is_the_names(tmp_path: Path) -> None:
    ours = trustme.CA()
    ours.cert_pem.write_to_path(str(tmp_path / "ca"))
    async with NameServer() as server:
        worker = FakeWorker()
        worker.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ours.issue_cert(NAME).configure_cert(worker.tls)
        server.records = {(NAME, "A"): [worker.host]}
        async with worker:
            settings = asking(server, f"dns+wss://{NAME}:{worker.port}/ws", worker_tls_ca=str(tmp_path / "ca"))
            async with fleet(**settings) as running:
                await running.wait_workers(1)
                assert await result_of(running, "1") == "1"


def test_a_nameserver_is_an_address_with_a_port_if_any() -> None:
    assert parse_server("10.0.0.10") == ("10.0.0.10", 53)
    assert parse_server("10.0.0.10:8600") == ("10.0.0.10", 8600)
    assert parse_server("::1") == ("::1", 53)
    assert parse_server("[::1]:8600") == ("::1", 8600)
    for wrong in (
        "",
        "ns.example",
        "10.0.0.10:",
        "10.0.0.10:0",
        "10.0.0.10:65536",
        "10.0.0.10:x",
        "10.0.0.10/x",
        "[::1",
    ):
        with pytest.raises(ValueError, match="nameserver"):
            BrokerConfig(dns_servers=[wrong])


def test_a_name_without_tls_is_refused_where_certificates_are_wanted() -> None:
    with pytest.raises(ValueError, match="write wss://"):
        BrokerConfig(workers=[f"dns+ws://{NAME}/ws"], worker_tls_ca="ca.pem")
    BrokerConfig(workers=[f"dns+wss://{NAME}/ws", f"srv+wss://{SERVICE}/ws"], worker_tls_ca="ca.pem")
