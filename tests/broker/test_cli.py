"""The command's options that are read here."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from enclave_broker.cli import main, read_limits
from enclave_protocol import Limits


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--limit", "maxToolCalls"], "NAME=VALUE"),
        (["--limit", "maxToolCalls=many"], "NAME=VALUE"),
        (["--limit", "maxToolCalls=0"], "limits.maxToolCalls"),
        (["--limit", "nonsense=1"], "unknown limit"),
        (["--cors-origin", "app.example.com"], "https://app.example.com"),
        (["--worker", "http://x"], "starts with ws://"),
        (["--port", "70000"], "--port"),
        (["--tools", "no.such.module"], "no.such.module"),
    ],
)
def test_a_setting_that_cannot_be_is_told_before_anything_starts(option: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["--worker", "ws://127.0.0.1:1/ws", "--port", "0", *option])
    assert done.exit_code == 2
    assert said in done.output


def test_a_broker_without_workers_does_not_start() -> None:
    done = CliRunner().invoke(main, ["--port", "0"])
    assert done.exit_code == 2
    assert "no worker" in done.output.splitlines()[-1]


def test_limits_are_those_of_sessions_that_do_not_set_them() -> None:
    limits = read_limits(("maxToolCalls=7", "timeout=50", "cancelOnFirstError=true"))
    assert (limits.max_tool_calls, limits.deadline_ms, limits.cancel_on_first_error) == (7, 50, True)
    assert limits.max_stdout_bytes == Limits().max_stdout_bytes
