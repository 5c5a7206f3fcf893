"""Scripts for the shell on the real sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from enclave_protocol import RemoteProtocolError
from enclave_protocol.languages import MAX_SCRIPT_BYTES
from enclave_worker.api import RuntimeConfig, create_runtime_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from enclave_worker.executions import ExecutionResult


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., ExecutionResult]]:
    """Run a script on a worker of this process."""
    with create_runtime_worker(RuntimeConfig(pool_size=1, level="BEST")) as worker:

        def run(script: str, **options: Any) -> ExecutionResult:
            limits = {"deadlineMs": 50_000, **options.pop("limits", {})}
            return worker.execute_sync(None, script, limits, language="shell", **options)

        yield run


def test_output_comes_by_its_stream_and_the_result_is_the_exit_code(run: Callable[..., ExecutionResult]) -> None:
    done = run("echo out\necho err >&2\nexit 3")

    assert (done.stdout, done.stderr, done.ok, done.result) == ("out\n", "err\n", True, {"exitCode": 3})


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("", 0),
        ("false; true", 0),
        ("set -e\nfalse\ntrue", 1),
        ("no-such-program", 127),
        ("kill -TERM $$", 143),
        ("if", 2),
        ("exec 3>&1; exit 5", 5),
        ("yes | head -n 1 > /dev/null", 0),
    ],
)
def test_an_exit_code_is_what_a_shell_makes_of_it(run: Callable[..., ExecutionResult], script: str, code: int) -> None:
    assert run(script).result == {"exitCode": code}


def test_a_message_of_the_shells_names_the_line(run: Callable[..., ExecutionResult]) -> None:
    assert run("true\nno-such-program").stderr.startswith("main.sh: 2: ")


def test_a_script_runs_in_the_sandboxes_working_directory_and_finds_what_the_session_brought(
    run: Callable[..., ExecutionResult],
) -> None:
    script = "cat a/b.txt; echo $GREETING > new; ls; echo $HOME; cat"
    done = run(script, env={"GREETING": "hello"}, files={"a/b.txt": "ä\n"})

    assert done.stdout == "ä\na\nnew\n/workspace\n"
    assert done.result == {"exitCode": 0}


def test_programs_are_there_and_python_among_them(run: Callable[..., ExecutionResult]) -> None:
    assert run("seq 3 | sort -r | python3 -c 'import sys; print(sys.stdin.read().split())'").stdout == (
        "['3', '2', '1']\n"
    )


def test_a_script_does_not_wait_for_what_it_leaves_in_the_background(run: Callable[..., ExecutionResult]) -> None:
    done = run("sleep 1000 &\n(sleep 0.01; exit 9) &\nwait $!; echo $?")

    assert (done.stdout, done.result) == ("9\n", {"exitCode": 0})


def test_a_script_has_neither_the_network_nor_the_hosts_files_nor_the_workers_socket(
    run: Callable[..., ExecutionResult],
) -> None:
    script = """
test -e /etc/shadow && echo shadow
test -e /proc/self/fd/3 && echo socket
echo x > /usr/bin/x || echo read-only
cat /proc/net/route 2>/dev/null
id -u
"""
    assert run(script).stdout == "read-only\n1000\n"


def test_limits_hold_for_what_a_script_starts(run: Callable[..., ExecutionResult]) -> None:
    endless = run("while :; do :; done", limits={"cpuTimeMs": 200})
    assert endless.error is not None
    assert endless.error.code == "CPU_LIMIT_EXCEEDED"

    hoard = run("python3 -c 'x = bytearray(1 << 30)' || exit 7", limits={"memoryLimitBytes": 100 << 20})
    assert hoard.result == {"exitCode": 7} or (hoard.error and hoard.error.code == "MEMORY_LIMIT_EXCEEDED")


def test_a_script_that_is_too_large_for_one_argument_is_refused_and_the_largest_is_not(
    run: Callable[..., ExecutionResult],
) -> None:
    comment = "#" * (MAX_SCRIPT_BYTES - 7)
    assert run(f"exit 4\n{comment}").result == {"exitCode": 4}

    with pytest.raises(RemoteProtocolError) as caught:
        run(f"exit 4\n{comment}#")
    assert (caught.value.field, caught.value.allowed) == ("code", f"at most {MAX_SCRIPT_BYTES} bytes of UTF-8")


def test_a_script_with_a_nul_cannot_be_run_and_says_so(run: Callable[..., ExecutionResult]) -> None:
    done = run("echo '\0'")

    assert done.error is not None
    assert done.error.code == "EXECUTION_ERROR"
    assert "null" in done.error.message
