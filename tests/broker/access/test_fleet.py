"""A real worker and a real broker that trust each other by certificates and a secret, and what they let out of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trustme
from click.testing import CliRunner
from websockets.asyncio.client import connect

import enclave_broker.cli
import enclave_client.cli
import enclave_worker.cli
from enclave_broker import create_broker
from enclave_broker.channels import WebSocketDial
from enclave_broker.tls import worker_context
from enclave_worker.channels import ChannelClosed, create_websocket_channel
from enclave_worker.config import RuntimeConfig
from enclave_worker.door import SAY_EVERY_S, AccessError, open_door
from tests.broker.access.tenants import KeysFile, final, two_tenants
from tests.fakes import FakeWorker
from tests.support import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import click


class Authority:
    """A certificate authority, and what it has issued, as files."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self._ca = trustme.CA()
        self._path = path
        self.file = str(path / "ca.pem")
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, *names: str) -> tuple[str, str]:
        """Return the files of a certificate and its key."""
        issued = self._ca.issue_cert(*names)
        cert, key = self._path / f"{names[0]}.pem", self._path / f"{names[0]}.key"
        issued.private_key_pem.write_to_path(str(key))
        for blob in issued.cert_chain_pems:
            blob.write_to_path(str(cert), append=True)
        return str(cert), str(key)


class Trust:
    """Everything that a worker and its broker are told of each other."""

    def __init__(self, path: Path) -> None:
        self.ours, self.others = Authority(path / "ours"), Authority(path / "others")
        self.worker, self.broker = self.ours.issue("127.0.0.1"), self.ours.issue("broker.example")
        self.stranger = self.others.issue("stranger.example")
        self.token = secrets.token_urlsafe(32)
        self.token_file = path / "worker.token"
        self.token_file.write_text(f"# the first is sent\n{self.token}\n")


class Program:
    """One of our commands, and all that it writes."""

    def __init__(self, module: str, path: Path, *options: str, **env: str) -> None:
        self.err = path / f"{module}.err"
        self.started = time.monotonic()
        command = [sys.executable, "-c", f"from {module} import main; main()", *options]
        with self.err.open("w") as err:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=err, env=os.environ | env, text=True
            )
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline()
        assert self.first, f"{self.process.wait(PATIENCE_S)}: {self.err.read_text()}"
        self.url = self.first.split()[3]

    def end(self) -> str:
        """Stop it; returns everything that it wrote."""
        self.process.terminate()
        rest, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.first + rest + self.err.read_text()

    def command_line(self) -> str:
        return Path(f"/proc/{self.process.pid}/cmdline").read_text()


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust(tmp_path_factory.mktemp("trust"))


@pytest.fixture(scope="module")
def worker(trust: Trust, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A worker that everybody may reach, and that wants certificate and token."""
    cert, key = trust.worker
    files = ("--worker-token-file", str(trust.token_file), "--tls-cert", cert, "--tls-key", key)
    options = ("--host", "0.0.0.0", "--port", "0", *files, "--tls-ca", trust.ours.file, "--debug")
    program = Program("enclave_worker.cli", tmp_path_factory.mktemp("worker"), *options)
    program.url = program.url.replace("0.0.0.0", "127.0.0.1")
    yield program
    program.end()


def dial(url: str, token: str, ca: str, certificate: Sequence[str]) -> WebSocketDial:
    return WebSocketDial(url, timeout_s=PATIENCE_S, token=token, tls=worker_context(ca, *(certificate or ("", ""))))


async def test_a_worker_takes_who_shows_its_token_and_a_certificate_of_its_authority(
    trust: Trust, worker: Program
) -> None:
    assert worker.url.startswith("wss://")
    transport = await dial(worker.url, trust.token, trust.ours.file, trust.broker)()
    assert json.loads(await transport.recv())["type"] == "hello"
    await transport.close()


async def test_a_channel_of_the_library_can_show_both_too(trust: Trust, worker: Program) -> None:
    tls = worker_context(trust.ours.file, *trust.broker)
    async with create_websocket_channel(worker.url, token=trust.token, tls=tls) as channel:
        assert json.loads(await channel.recv())["type"] == "hello"
    with pytest.raises(ChannelClosed, match="401"):
        await create_websocket_channel(worker.url, tls=tls, reconnect=False).connect()


async def test_a_worker_refuses_everybody_else_and_both_sides_say_why(trust: Trust, worker: Program) -> None:
    ours, wrong = trust.ours.file, secrets.token_urlsafe(32)
    for token, ca, certificate, said in [
        (wrong, ours, trust.broker, "it refused us"),
        ("", ours, trust.broker, "it refused us"),
        (trust.token + "x", ours, trust.broker, "it refused us"),
        (trust.token, ours, (), "it refused us"),
        (trust.token, ours, trust.stranger, "an authority that it knows"),
        (trust.token, trust.others.file, trust.broker, "certificate verify failed"),
        (trust.token, "", (), "certificate verify failed"),
    ]:
        with pytest.raises(ConnectionError) as caught:
            await dial(worker.url, token, ca, certificate)()
        assert said in re.sub(r"[-_]", " ", str(caught.value)).lower(), (token, certificate)
        assert "Bearer" not in str(caught.value)
    logged = worker.err.read_text()
    assert "--worker-token-file" in logged
    most = 1 + (time.monotonic() - worker.started) // SAY_EVERY_S
    assert 1 <= logged.count("refused a connection") <= most, "a knocker fills the log"
    context = ssl.create_default_context(cafile=ours)
    async with httpx.AsyncClient(verify=context, base_url=worker.url.replace("wss", "https")[: -len("/ws")]) as probe:
        assert [(await probe.get(path)).status_code for path in ("/healthz", "/readyz")] == [200, 200]
        refused = re.search(
            r"^enclave_connections_refused_total (\d+)", (await probe.get("/metrics")).text, re.MULTILINE
        )
        assert refused is not None
        assert int(refused[1]) >= 5, "those that hung up by themselves may count or not"
        assert (await probe.get("/ws")).status_code == 401


async def test_a_certificate_of_another_authority_is_told_in_the_workers_log(
    trust: Trust, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = trust.worker
    files = {"tls_cert": cert, "tls_key": key, "tls_ca": trust.ours.file}
    door = open_door(RuntimeConfig(**files))  # type: ignore[arg-type]  # all of them are text
    told = asyncio.Event()
    door.on_refused = told.set

    async def never(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(never, "127.0.0.1", 0, ssl=door.tls)
    async with server:
        url = f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        with pytest.raises(ConnectionError):
            await dial(url, trust.token, trust.ours.file, trust.stranger)()
        await told.wait()
    assert "the handshake of TLS failed: CERTIFICATE_VERIFY_FAILED" in caplog.text


PRYING = """
import os, glob
found = [dict(os.environ)]
for name in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline") + glob.glob("/proc/*/task/*/environ"):
    try:
        found.append(open(name).read())
    except OSError as error:
        found.append(str(error))
print(found)
return await call_tool("leak", {"found": found})
"""


async def test_no_key_token_or_secret_leaves_a_fleet_that_logs_everything(
    trust: Trust, worker: Program, tmp_path: Path
) -> None:
    file = KeysFile(tmp_path / "keys.toml", "[tenants.acme.quotas]\nsessions_per_minute = 2\n")
    key, rival = file.add("acme"), file.add("rival")
    signing = secrets.token_urlsafe(32)
    certificates = ["--worker-tls-ca", trust.ours.file, "--worker-tls-cert", trust.broker[0]]
    certificates += ["--worker-tls-key", trust.broker[1], "--tls-cert", trust.worker[0], "--tls-key", trust.worker[1]]
    options = ("--host", "0.0.0.0", "--port", "0", "--worker", worker.url, *certificates, "--log-level", "debug")
    env = {"ENCLAVE_WORKER_TOKEN": trust.token, "ENCLAVE_TOKEN_SECRETS": signing}
    broker = Program("enclave_broker.cli", tmp_path, *options, "--keys-file", str(file.path), **env)
    base = broker.url.replace("0.0.0.0", "127.0.0.1")
    context = ssl.create_default_context(cafile=trust.ours.file)
    let_out = []
    try:
        assert base.startswith("https://")
        shown = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(verify=context, base_url=base, headers=shown, timeout=PATIENCE_S) as acme:
            await _ready(acme)
            token = (await acme.post("/tokens", json={})).json()["token"]
            let_out += [(await acme.post("/sessions", json={"code": PRYING})).text]
            assert final(let_out[0])["error"]["code"] == "UNKNOWN_TOOL"
            bearer = {"Authorization": f"Bearer {token}"}
            let_out += [(await acme.post("/sessions", json={"code": "return 1"}, headers=bearer)).text]
            assert final(let_out[1])["ok"] is True
            assert (await acme.post("/sessions", json={"code": "1"})).status_code == 429
            for path in ("/sessions", "/tenant", "/docs", "/sessions/s_x", "/metrics", "/nowhere"):
                for credential in (key, token, rival, key[:-1] + "~", f"{token}x"):
                    headers = {"Authorization": f"Bearer {credential}"}
                    let_out.append((await acme.get(path, headers=headers)).text)
            del acme.headers["Authorization"]
            session_id = json.loads(let_out[1].splitlines()[0])["sessionId"]
            for name in (session_id, "s_x"):
                let_out.append((await acme.get(f"/sessions/{name}/stream?access_token={token}")).text)
            assert final(let_out[-2])["ok"] is True
        url = base.replace("https", "wss") + "/ws"
        heard = []
        for protocols in (["enclave.v2", f"enclave.bearer.{token}"], [f"enclave.bearer.{token}"], [f"x.{token}"]):
            with contextlib.suppress(Exception):
                async with connect(url, ssl=context, proxy=None, subprotocols=protocols) as socket:  # type: ignore[arg-type]  # a NewType of str
                    await socket.send(json.dumps({"type": "execute", "sessionId": "s_1", "code": "return 1"}))
                    heard.append(str(await socket.recv()) + str(await socket.recv()))
        assert any("QUOTA_EXCEEDED" in text or "session_init" in text for text in heard)  # its minute may be over
        let_out += [*heard, broker.command_line(), worker.command_line()]
        broker.process.send_signal(1)  # SIGHUP reads the keys again, and ends nothing
    finally:
        let_out.append(broker.end())
    let_out.append(worker.err.read_text())
    assert f"worker {worker.url} " in let_out[-2]
    assert "keys reloaded: 2 keys" in let_out[-2]
    assert "started" in let_out[-1], "the worker did not log everything"
    for name, canary in {"key": key, "rival": rival, "token": token, "signing": signing, "worker": trust.token}.items():
        secret = canary.split("_", 2)[2] if name in {"key", "rival"} else canary.rpartition(".")[2]
        for text in let_out:
            assert secret[:20] not in text, f"the {name} got out: {text[:2000]}"


async def _ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(0.01)


async def test_a_broker_in_a_program_that_logs_everything_logs_no_credential(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("uvicorn", "websockets", "litestar"):
        caplog.set_level(logging.DEBUG, logger=name)
    shared = secrets.token_urlsafe(32)
    (tmp_path / "worker.token").write_text(shared)
    async with two_tenants(tmp_path, FakeWorker(), worker_token_file=str(tmp_path / "worker.token")) as (
        tenants,
        acme,
        _,
    ):
        token = (await acme.post("/tokens", json={})).json()["token"]
        url = tenants.broker.url.replace("http", "ws") + "/ws"
        protocols: Any = ["enclave.v2", f"enclave.bearer.{token}"]
        shown = {"Authorization": f"Bearer {tenants.file.keys['acme']}"}
        async with connect(url, proxy=None, additional_headers=shown), connect(url, proxy=None, subprotocols=protocols):
            pass
        ours = [record.getMessage() for record in caplog.records if record.name.split(".")[0] in {"enclave", "uvicorn"}]
        assert any("client" in line for line in ours)
        for secret in (token, tenants.file.keys["acme"]):
            assert not any(secret in line for line in ours)
        # The fake worker's own library logs what it was sent, and so it was sent.
        assert {record.name for record in caplog.records if shared in record.getMessage()} == {"websockets.server"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "worker.example", ""])
def test_neither_program_listens_to_strangers_unless_told(host: str, trust: Trust, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--keys-file .* --insecure"):
        create_broker(host=host)
    with pytest.raises(AccessError, match=r"--worker-token-file, or --tls-ca.* --insecure"):
        open_door(RuntimeConfig(host=host))
    assert not open_door(RuntimeConfig(host=host, insecure=True)).closed
    assert open_door(RuntimeConfig(host=host, worker_token_file=str(trust.token_file))).closed
    create_broker(host=host, insecure=True)
    KeysFile(tmp_path / "keys.toml").add("acme")
    create_broker(host=host, keys_file=str(tmp_path / "keys.toml"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_on_loopback_nothing_is_needed(host: str) -> None:
    create_broker(host=host)
    assert not open_door(RuntimeConfig(host=host)).closed


def test_certificates_alone_do_not_say_who_comes(trust: Trust) -> None:
    """TLS without an authority hides what is said; it keeps nobody out."""
    cert, key = trust.worker
    with pytest.raises(AccessError, match="would let everybody"):
        open_door(RuntimeConfig(host="0.0.0.0", tls_cert=cert, tls_key=key))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"worker_token_file": "/no/such/file"}, "/no/such/file: No such file"),
        ({"worker_token_file": "SHORT"}, "line 1: a secret of 5 characters"),
        ({"tls_cert": "CERT"}, "belong together"),
        ({"tls_ca": "CA"}, "belong together"),
        ({"tls_cert": "/no/cert", "tls_key": "KEY"}, "tls_cert /no/cert"),
        ({"tls_cert": "CERT", "tls_key": "OTHER"}, "KEY_VALUES_MISMATCH"),
        ({"tls_cert": "SHORT", "tls_key": "KEY"}, "tls_cert"),
        ({"tls_cert": "CERT", "tls_key": "KEY", "tls_ca": "SHORT"}, "tls_ca"),
    ],
)
def test_a_worker_says_which_file_is_wrong(settings: dict[str, str], said: str, trust: Trust, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("abcde")
    files = {"SHORT": str(short), "CERT": trust.worker[0], "KEY": trust.worker[1], "OTHER": trust.broker[1]}
    files["CA"] = trust.ours.file
    with pytest.raises(AccessError) as caught:
        open_door(RuntimeConfig(**{name: files.get(value, value) for name, value in settings.items()}))  # type: ignore[arg-type]  # all of them are text
    assert said in str(caught.value)
    assert "abcde" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keys_file": "/no/such/file"}, "/no/such/file: No such file"),
        ({"keys_file": "SHORT"}, "not TOML"),
        ({"token_secrets_file": "SHORT"}, "line 1: a secret of 5 characters"),
        ({"worker_token_file": "SHORT"}, "line 1: a secret of 5 characters"),
        ({"tls_cert": "CERT"}, "tls_cert and tls_key belong together"),
        ({"tls_cert": "CERT", "tls_key": "OTHER"}, "KEY_VALUES_MISMATCH"),
        ({"worker_tls_ca": "SHORT"}, "worker_tls_ca"),
        ({"worker_tls_cert": "CERT", "worker_tls_key": "/no/key"}, "worker_tls_key /no/key"),
        ({"worker_tls_ca": "CA", "workers": ("ws://127.0.0.1:1/ws",)}, "write wss://"),
        ({"workers": ("ws://user:abcde@127.0.0.1:1/ws",)}, "worker_token_file instead"),
    ],
)
def test_a_broker_says_which_file_is_wrong(settings: dict[str, Any], said: str, trust: Trust, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("abcde")
    files = {"SHORT": str(short), "CERT": trust.worker[0], "OTHER": trust.broker[1], "CA": trust.ours.file}
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        create_broker(**{name: files.get(value, value) for name, value in settings.items()})
    assert "abcde" not in str(caught.value)


@pytest.mark.parametrize("command", [enclave_broker.cli.main, enclave_worker.cli.main, enclave_client.cli.main])
@pytest.mark.parametrize("option", ["--worker-token", "--token-secrets", "--api-key", "--keys"])
def test_no_option_takes_a_secret(command: click.Command, option: str) -> None:
    canary = "0123456789abcdef" * 3
    for options in ((option, canary), (f"{option}={canary}",)):
        done = CliRunner().invoke(command, options)
        assert done.exit_code == 2
        assert "No such option" in done.output
        assert canary not in done.output
