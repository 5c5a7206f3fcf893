"""`enclave run` as a real process, against a broker that says exactly what each test wants."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from enclave_client.cli import main
from enclave_protocol import MAX_CODE_BYTES, decode_event
from enclave_protocol.events import Final
from tests.client.fake_socket import FakeSocketBroker, Told, refusal, waits_for_cancel

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = (sys.executable, "-P", "-m", "enclave_client.cli", "run")


async def start(
    *arguments: str, code: bytes = b"return 1", environment: dict[str, str] | None = None
) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    env = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")} | (environment or {})
    process = await asyncio.create_subprocess_exec(*COMMAND, *arguments, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
    assert process.stdin is not None
    process.stdin.write(code)
    process.stdin.close()
    return process


async def run(
    *arguments: str, code: bytes = b"return 1", environment: dict[str, str] | None = None
) -> tuple[int, str, str]:
    process = await start(*arguments, code=code, environment=environment)
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def read_exactly(process: asyncio.subprocess.Process, count: int) -> bytes:
    assert process.stdout is not None
    return await process.stdout.readexactly(count)


async def ok(told: Told) -> None:
    await told.final(2)


async def test_output_and_result_and_exit_code_zero() -> None:
    async def script(told: Told) -> None:
        await told.stdout("hi\n")
        await told.final(2)

    async with FakeSocketBroker(script) as broker:
        assert await run("-", "--broker", broker.url) == (0, "hi\n2\n", "")


async def test_the_broker_and_the_key_may_be_given_by_the_environment() -> None:
    async with FakeSocketBroker(ok) as broker:
        environment = {"ENCLAVE_BROKER": broker.url, "ENCLAVE_API_KEY": "ek_1"}
        assert await run("-", environment=environment) == (0, "2\n", "")
        assert broker.handshakes[0].headers["Authorization"] == "Bearer ek_1"


async def test_output_is_shown_before_the_session_ends() -> None:
    seen = asyncio.Event()

    async def script(told: Told) -> None:
        await told.stdout("live")
        await seen.wait()
        await told.final(2)

    async with FakeSocketBroker(script) as broker:
        process = await start("-", "--broker", broker.url)
        assert await read_exactly(process, 4) == b"live"
        seen.set()
        rest, _ = await process.communicate()

    assert rest == b"\n2\n"


async def test_a_failure_exits_with_one() -> None:
    async def script(told: Told) -> None:
        await told.fail("EXECUTION_ERROR", "boom")

    async with FakeSocketBroker(script) as broker:
        assert await run("-", "--broker", broker.url) == (1, "", "enclave: EXECUTION_ERROR: boom\n")


async def test_events_are_printed_byte_for_byte() -> None:
    async def script(told: Told) -> None:
        await told.line(f'{{"type":"stdout",  "seq":2,"sessionId":"{told.session_id}","payload":{{"chunk":"\u2028"}}}}')
        await told.final(2)

    async with FakeSocketBroker(script) as broker:
        done = await run("-", "--events", "--broker", broker.url)
        [told] = broker.sessions.values()

    assert done == (0, "".join(f"{line}\n" for line in told.log), "")


async def test_a_connection_that_breaks_is_made_again_and_nothing_is_lost() -> None:
    async def script(told: Told) -> None:
        await told.stdout("x")
        told.broker.cut()
        await told.stdout("y\n")
        await told.final(2)

    async with FakeSocketBroker(script) as broker:
        assert await run("-", "--broker", broker.url) == (0, "xy\n2\n", "")


async def test_a_broker_that_forgot_the_session_is_said_so() -> None:
    async def script(told: Told) -> None:
        await told.stdout("x")
        del told.broker.sessions[told.session_id]
        told.broker.cut()

    async with FakeSocketBroker(script) as broker:
        code, out, err = await run("-", "--broker", broker.url)

    assert (code, out) == (1, "x")
    assert "does not know it any more" in err
    assert "whether the code ran to its end is unknown" in err


async def test_how_long_a_broker_is_waited_for_is_an_option() -> None:
    async def script(told: Told) -> None:
        await told.stdout("x")
        await told.broker.stop()

    async with FakeSocketBroker(script) as broker:
        code, out, err = await run("-", "--broker", broker.url, "--reconnect-s", "0")

    assert (code, out) == (1, "x")
    assert "whether the code ran to its end is unknown" in err


async def test_a_broker_that_is_killed_and_comes_back_with_its_sessions_is_waited_for() -> None:
    async def script(told: Told) -> None:
        await told.stdout("x")
        await told.broker.stop()
        await told.stdout("y\n")
        await told.broker.start()
        await told.final(2)

    async with FakeSocketBroker(script) as broker:
        assert await run("-", "--broker", broker.url) == (0, "xy\n2\n", "")


async def test_a_second_signal_gives_up_on_a_broker_that_ends_nothing() -> None:
    async def script(told: Told) -> None:
        await told.stdout("x")
        await asyncio.Event().wait()

    async with FakeSocketBroker(script) as broker:
        process = await start("-", "--broker", broker.url)
        await read_exactly(process, 1)
        process.send_signal(signal.SIGTERM)
        await broker.wait_received("cancel")
        process.send_signal(signal.SIGTERM)
        _, err = await process.communicate()

    assert process.returncode == 1
    assert err == b"enclave: stopped before the session's end was known\n"


@pytest.mark.parametrize(
    ("status", "body", "said", "exit_code"),
    [
        (401, b'{"code":"UNAUTHORIZED","message":"no such key"}', "enclave: UNAUTHORIZED: no such key\n", 1),
        (502, b"<html>\n  nginx</html>", "HTTP_502: <html> nginx</html>", 2),
    ],
)
async def test_a_refusal_is_told_with_its_code(status: int, body: bytes, said: str, exit_code: int) -> None:
    async with FakeSocketBroker(ok) as broker:
        broker.refusal = refusal(status, body)
        code, out, err = await run("-", "--broker", broker.url)

    assert (code, out) == (exit_code, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("events", [[], ["--events"]])
async def test_a_request_that_is_refused_is_told_with_its_field(events: list[str]) -> None:
    async with FakeSocketBroker(ok) as broker:
        broker.rejects = "profile"
        code, out, err = await run("-", "--profile", "p", "--broker", broker.url, *events)

    assert (code, err) == (1, "enclave: VALIDATION_ERROR: profile: not here\n")
    assert ('"ok":false' in out) == bool(events)  # whoever reads lines can rely on a final


async def test_profile_variables_and_files_go_into_the_request(tmp_path: Path) -> None:
    (tmp_path / "text.csv").write_text("a,b")
    (tmp_path / "bytes").write_bytes(b"\xff\0")
    files = ["--file", f"{tmp_path}/text.csv", "--file", f"{tmp_path}/bytes=in/b.bin"]
    given = ["--profile", "python-data", "--env", "A=1=2", "--env", "B=", *files]

    async with FakeSocketBroker(ok) as broker:
        code, _, err = await run("-", "--broker", broker.url, *given)

    assert (code, err) == (0, "")
    [request] = await broker.wait_received("execute")
    assert (request["profile"], request["env"]) == ("python-data", {"A": "1=2", "B": ""})
    assert request["files"] == {"text.csv": "a,b", "in/b.bin": {"base64": "/wA="}}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--env", "A"], "write NAME=VALUE"),
        (["--env", "1=2"], "env.1"),
        (["--file", "/no/such"], "cannot read /no/such"),
        (["--file", f"{__file__}=../up"], "files.../up"),
        (["--file", f"{__file__}=a", "--file", f"{__file__}=a"], "another file 'a'"),
        (["--file", "/dev/zero=zero"], "files"),
    ],
)
def test_a_wrong_variable_or_file_is_told_before_anything_starts(options: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["run", "-", *options], input="return 1")

    assert done.exit_code == 2
    assert said in done.output


async def test_an_unreachable_broker_exits_with_two_and_one_line() -> None:
    code, out, err = await run("-", "--broker", "http://127.0.0.1:1")

    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "enclave up" in err


async def test_interrupting_cancels_the_session_and_waits_for_its_final() -> None:
    async with FakeSocketBroker(waits_for_cancel) as broker:
        process = await start("-", "--broker", broker.url)
        await read_exactly(process, 1)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()

    assert process.returncode == 1
    assert err == b"enclave: SESSION_CANCELLED: cancelled\n"


async def test_a_reader_that_goes_away_cancels_the_session() -> None:
    async def script(told: Told) -> None:
        for _ in range(4):
            await told.stdout("y" * 65_536)
        await told.cancelled.wait()
        await told.fail("SESSION_CANCELLED")

    async with FakeSocketBroker(script) as broker:
        reader, writer = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "-", "--broker", broker.url, stdin=asyncio.subprocess.DEVNULL, stdout=writer, stderr=-1
        )
        os.close(writer)
        os.close(reader)
        _, err = await process.communicate()

        assert await broker.wait_received("cancel")
    assert (process.returncode, err) == (1, b"")


async def test_code_travels_unchanged_and_limits_by_their_names() -> None:
    code = "x = '\u2028 \x00 žluť 🐎'\r\nreturn x"
    arguments = ("--limits", "maxToolCalls=5", "--limits", "cancelOnFirstError=true", "--timeout-ms", "700")
    async with FakeSocketBroker(ok) as broker:
        await run("-", "--broker", broker.url, *arguments, "--language", "python", code=b"\xef\xbb\xbf" + code.encode())
        [request] = await broker.wait_received("execute")

    assert request["code"] == code
    assert request["limits"] == {"maxToolCalls": 5, "cancelOnFirstError": True, "deadlineMs": 700}
    assert request["language"] == "python"


async def test_code_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text("return 7")
    async with FakeSocketBroker(ok) as broker:
        await run(str(file), "--broker", broker.url)

        [request] = await broker.wait_received("execute")

    assert request["code"] == "return 7"


async def test_event_lines_end_with_a_final_even_for_code_that_is_never_sent() -> None:
    async with FakeSocketBroker(ok) as broker:
        status, out, err = await run("-", "--events", "--broker", broker.url, code=b"x" * (MAX_CODE_BYTES + 1))

    [final] = [decode_event(line) for line in out.encode().splitlines()]
    assert isinstance(final, Final)
    assert final.payload.error
    assert (status, final.payload.error.code) == (1, "VALIDATION_ERROR")
    assert str(MAX_CODE_BYTES) in err


@pytest.mark.parametrize(
    ("name", "arguments", "language"),
    [
        ("a.py", [], "python"),
        ("a.JS", [], "javascript"),
        ("a.mjs", [], "javascript"),
        ("a.sh", [], "shell"),
        ("a.txt", [], None),
        ("a.py", ["--language", "shell"], "shell"),
    ],
)
async def test_the_ending_of_a_files_name_says_its_language_unless_an_option_does(
    tmp_path: Path, name: str, arguments: list[str], language: str | None
) -> None:
    file = tmp_path / name
    file.write_text("1")
    async with FakeSocketBroker(ok) as broker:
        await run(str(file), "--broker", broker.url, *arguments)
        [request] = await broker.wait_received("execute")

    assert request.get("language") == language


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-", "--language", "cobol"], b"", "'cobol' is not one of"),
        (["-"], b"ok\xff", "not UTF-8 text: byte 0xff at offset 2"),
        (["-", "--limits", "maxTools=1"], b"", "limits.maxTools: unknown limit"),
        (["-", "--limits", "maxToolCalls=many"], b"", "limits.maxToolCalls"),
        (["-", "--limits", "maxToolCalls"], b"", "write NAME=VALUE"),
        (["-", "--broker", "localhost:3000"], b"", "give an address such as"),
        (["-", "--broker", "http://127.0.0.1:1", "--tools", "mine"], b"", "--tools belongs to the broker"),
        (["-", "--broker", "http://127.0.0.1:1", "--tools-file", "f"], b"", "--tools-file belongs to the broker"),
        (["no-such-file"], b"", "does not exist"),
        (["/dev/zero"], b"", "/dev/zero is too large: more than 16777216 bytes"),
        (["."], b"", "is a directory"),
    ],
)
def test_a_wrong_command_line_exits_with_two_and_says_what_is_wrong(
    arguments: list[str], code: bytes, said: str
) -> None:
    done = CliRunner().invoke(main, ["run", *arguments], input=code)

    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize(
    ("redirections", "code", "said"),
    [
        ("<&-", 2, b"standard input is closed"),
        ("</dev/null >&-", 0, b""),
        ("</dev/null 2>&-", 0, b"2\n"),
        ("</dev/null >/dev/full", 1, b"enclave: cannot write the output: No space left on device"),
    ],
)
async def test_closed_and_full_streams_end_without_a_traceback(redirections: str, code: int, said: bytes) -> None:
    async with FakeSocketBroker(ok) as broker:
        script = f'exec "$@" {redirections}'
        shell = ("sh", "-c", script, "sh", *COMMAND, "-", "--broker", broker.url)
        process = await asyncio.create_subprocess_exec(*shell, stdout=-1, stderr=-1)
        out, err = await process.communicate()

    assert process.returncode == code
    assert said in out + err
    assert b"Traceback" not in err
