"""`enclave run`: send code to a broker, print what it does as it happens, and end with its result."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from enclave_protocol import MAX_MESSAGE_BYTES, RemoteProtocolError, parse_env, parse_files, parse_limits
from enclave_protocol.inputs import MAX_FILES_BYTES, encode_file
from enclave_protocol.languages import LANGUAGES, Language

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enclave_protocol.inputs import Content

T = TypeVar("T")

USAGE = 2
"""Exit code for a wrong command line, and for a broker that cannot be reached or started."""


DEFAULT_TIMEOUT_MS = 15_000
"""The SECURE level's: somebody waits at a terminal, and an endless loop should not keep him for a minute."""
DEFAULT_RECONNECT_S = 30.0


@click.command(name="run")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True))
@click.option("--broker", metavar="URL", envvar="ENCLAVE_BROKER", help="Where to run it.  [default: a private fleet]")
@click.option("--events", is_flag=True, envvar="ENCLAVE_EVENTS", help="Print the raw event lines instead.")
@click.option(
    "--limits",
    "limit_texts",
    multiple=True,
    metavar="NAME=VALUE",
    envvar="ENCLAVE_LIMITS",
    help="A limit, such as maxToolCalls=5. May be given several times.",
)
@click.option(
    "--profile",
    metavar="NAME",
    envvar="ENCLAVE_RUN_PROFILE",  # ENCLAVE_PROFILE is the workers', and a list
    help="The environment to run in.  [default: python]",
)
@click.option(
    "--env",
    "env_texts",
    multiple=True,
    metavar="NAME=VALUE",
    envvar="ENCLAVE_ENV",
    help="An environment variable for the code. May be given several times.",
)
@click.option(
    "--file",
    "file_texts",
    multiple=True,
    metavar="PATH[=NAME]",
    envvar="ENCLAVE_FILE",
    help="A file for the code's working directory, there called NAME. May be given several times.",
)
@click.option(
    "--language",
    type=click.Choice(LANGUAGES),
    envvar="ENCLAVE_LANGUAGE",
    help="What the code is.  [default: by the ending of FILE: .py, .js, .mjs, .sh; else the broker's]",
)
@click.option(
    "--timeout-ms",
    type=click.IntRange(min=0),
    default=DEFAULT_TIMEOUT_MS,
    show_default=True,
    envvar="ENCLAVE_TIMEOUT_MS",
    help="Wall deadline of the code; 0 leaves it to the session's time to live.",
)
@click.option(
    "--reconnect-s",
    type=click.FloatRange(min=0),
    default=DEFAULT_RECONNECT_S,
    show_default=True,
    envvar="ENCLAVE_RECONNECT_S",
    help="How long a lost connection to --broker is tried to be replaced before the session counts as lost.",
)
@click.option(
    "--tools",
    multiple=True,
    metavar="MODULE",
    envvar="ENCLAVE_TOOLS",
    help="A Python module with tools, for the private fleet. May be given several times.",
)
@click.option(
    "--tools-file",
    "tools_files",
    multiple=True,
    metavar="FILE",
    envvar="ENCLAVE_TOOLS_FILE",
    help="A file of OpenAPI documents, HTTP endpoints and MCP servers, for the private fleet. Repeat it.",
)
def command(  # noqa: PLR0917 - click passes by name
    file: str,
    broker: str | None,
    events: bool,  # noqa: FBT001 - click passes it by name
    limit_texts: tuple[str, ...],
    profile: str | None,
    env_texts: tuple[str, ...],
    file_texts: tuple[str, ...],
    language: str | None,
    timeout_ms: int,
    reconnect_s: float,
    tools: tuple[str, ...],
    tools_files: tuple[str, ...],
) -> None:
    """Run the code in FILE (- for standard input) in a fresh sandbox: Python, JavaScript, or a script for the shell.

    Its output appears as it is written; the last line of standard output is its result as JSON. The exit code is 0 if
    it ended well, 1 if it failed (the reason is on standard error), 2 if it could not be tried. Ctrl-C cancels it.
    """
    if broker and not broker.startswith(("http://", "https://")):
        raise click.UsageError(f"--broker {broker}: give an address such as http://127.0.0.1:3000")
    for parameter, option in (("tools", "--tools"), ("tools_files", "--tools-file")) if broker else ():
        if click.get_current_context().get_parameter_source(parameter) is _COMMAND_LINE:
            raise click.UsageError(
                f"{option} belongs to the broker: give it to `enclave up` or `enclave-broker` instead"
            )
    limits = read_limits(limit_texts, timeout_ms)
    request: dict[str, Any] = {"code": read_code(file)}
    if limits:
        request["limits"] = limits
    given = {
        "language": language or language_of(file),
        "profile": profile,
        "env": read_env(env_texts),
        "files": read_files(file_texts),
    }
    request |= {name: value for name, value in given.items() if value}
    # Imported when the command line is known to be right: a typo is answered at once.
    from enclave_client.runner import run_code  # noqa: PLC0415 - so that --help starts fast

    profiles = (profile,) if profile else ()
    code = run_code(
        request,
        broker=broker,
        raw_events=events,
        reconnect_s=reconnect_s,
        tools=tools,
        tools_files=tools_files,
        profiles=profiles,
    )
    sys.exit(code)


_COMMAND_LINE = click.core.ParameterSource.COMMANDLINE


_ENDINGS: dict[str, Language] = {".py": "python", ".js": "javascript", ".mjs": "javascript", ".sh": "shell"}


def language_of(file: str) -> Language | None:
    """Return what the ending of a file's name says about its language."""
    return _ENDINGS.get(Path(file).suffix.lower())


def read_code(file: str) -> str:
    """Read a whole file, or standard input for `-`; a UTF-8 byte order mark is dropped.

    Raises:
        click.ClickException: it cannot be read, is larger than any message, or is not UTF-8.
    """
    if file == "-" and sys.stdin is None:
        raise click.UsageError("standard input is closed: give a FILE, or pipe the code in")
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as source:
            raw = source.read(MAX_MESSAGE_BYTES + 1)
        if len(raw) > MAX_MESSAGE_BYTES:  # /dev/zero has no end
            raise click.UsageError(f"{file} is too large: more than {MAX_MESSAGE_BYTES} bytes, which no broker takes")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise click.UsageError(f"{file} is not UTF-8 text: byte 0x{byte:02x} at offset {error.start}") from error
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from error


def read_env(texts: Iterable[str]) -> dict[str, str]:
    """Read `NAME=VALUE` texts into the `env` of a request; raises click.UsageError naming the variable."""
    env: dict[str, str] = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found:
            raise click.UsageError(f"--env {text}: write NAME=VALUE")
        env[name] = value
    return _checked(parse_env, env)


def read_files(texts: Iterable[str]) -> dict[str, Content]:
    """Read the files of `PATH[=NAME]` texts into the `files` of a request; raises click.UsageError naming the file.

    Without a NAME, a file goes by the last part of its path.
    """
    files: dict[str, Content] = {}
    for text in texts:
        path, found, name = text.partition("=")
        name = name if found else Path(path).name
        if name in files:
            raise click.UsageError(f"--file {text}: there is another file {name!r}; write PATH=NAME")
        try:
            with Path(path).open("rb") as source:
                data = source.read(MAX_FILES_BYTES + 1)
        except OSError as error:
            raise click.UsageError(f"--file {text}: cannot read {path}: {error.strerror}") from error
        files[name] = encode_file(data)
    return _checked(parse_files, files)


def _checked(parse: Callable[[object], T], given: T) -> T:
    try:
        return parse(given)
    except RemoteProtocolError as error:
        raise click.UsageError(str(error)) from error


def read_limits(texts: Iterable[str], timeout_ms: int) -> dict[str, Any]:
    """Read `name=value` texts into the `limits` of a request.

    Raises:
        click.UsageError: names the limit and what is allowed.
    """
    limits: dict[str, Any] = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found:
            raise click.UsageError(f"--limits {text}: write NAME=VALUE, such as maxToolCalls=5")
        limits[name] = _limit_value(value)
    if timeout_ms and not limits.keys() & {"deadlineMs", "timeout"}:
        limits["deadlineMs"] = timeout_ms
    try:
        parse_limits(limits)
    except RemoteProtocolError as error:
        raise click.UsageError(str(error)) from error
    return limits


def _limit_value(text: str) -> int | bool | str:
    if text in {"true", "false"}:
        return text == "true"
    try:
        return int(text)
    except ValueError:
        return text
