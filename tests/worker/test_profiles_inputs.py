"""What a session is given besides its code, and what a profile makes of it, on the real sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from enclave_protocol import RemoteProtocolError
from enclave_protocol.inputs import MAX_FILES
from tests.support import Client, client_of, running
from tests.worker.profile_files import Offered, offering, write

if TYPE_CHECKING:
    from collections.abc import Iterator

PROFILE = """
[profiles.mine]
packages_dir = "lib"
preload = ["drawer"]
bare = true
memory_limit_bytes = 134_217_728
processes = 5
limits = { maxToolCalls = 2, deadlineMs = 40_000 }
env = { REGION = "eu", APP_MODE = "quiet" }
allow_env = ["TZ", "APP_*"]
"""
DRAWER = """
import random, ssl, tempfile
ssl.RAND_bytes(8)
tempfile.mktemp()
random.random()
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with a profile whose preloaded module draws random numbers."""
    directory = tmp_path_factory.mktemp("profiles")
    (directory / "lib").mkdir()
    (directory / "lib" / "drawer.py").write_text(DRAWER)
    return write(directory, PROFILE)


@pytest.fixture(scope="module")
def mine(file: str) -> Iterator[Offered]:
    """A worker that offers it."""
    with offering("mine", profiles_file=file) as offered:
        yield offered


def test_variables_are_there_before_the_code_and_in_what_it_starts(mine: Offered) -> None:
    code = """
import os, subprocess
told = subprocess.run(['/bin/sh', '-c', 'echo $APP_KEY $REGION'], capture_output=True, text=True).stdout
return os.environ['APP_KEY'], os.environ['REGION'], os.environ['APP_MODE'], told
"""
    assert mine.result(code, env={"APP_KEY": "ä=1", "APP_MODE": "loud"}) == ["ä=1", "eu", "loud", "ä=1 eu\n"]


def test_the_time_zone_may_be_given(mine: Offered) -> None:
    code = "import time\nreturn time.tzname[0], time.localtime(0).tm_hour"

    assert mine.result(code, env={"TZ": "Asia/Tokyo"}) == ["JST", 9]


def test_a_variable_that_the_profile_does_not_allow_is_refused_by_name(mine: Offered) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        mine.run("return 1", env={"REGION": "us"})

    assert (caught.value.field, caught.value.allowed) == ("env.REGION", "TZ, APP_*")


def test_files_lie_in_the_working_directory_for_either_kind_of_code(mine: Offered) -> None:
    files: dict[str, str | bytes] = {"a.txt": "ä\n", "deep/er/b.bin": b"\xff\0"}

    assert mine.result("return open('a.txt').read(), open('deep/er/b.bin', 'rb').read().hex()", files=files) == [
        "ä\n",
        "ff00",
    ]
    assert mine.result("import os\nreturn sorted(os.listdir('/workspace'))", files=files) == ["a.txt", "deep"]
    code = "import helper\nopen('helper.py', 'a').write('x')\nreturn helper.value"
    assert mine.result(code, files={"helper.py": "value = 5\n"}) == 5


def test_what_one_session_was_given_the_next_has_not(mine: Offered) -> None:
    mine.result("return 1", env={"APP_KEY": "secret"}, files={"secret.txt": "secret"})

    code = "import os\nreturn sorted(os.environ), os.listdir('/workspace'), os.listdir('/tmp')"
    assert mine.result(code) == [["APP_MODE", "PYTHONPATH", "REGION"], [], []]


def test_files_that_do_not_fit_are_the_sessions_failure(mine: Offered) -> None:
    # Within the limits of a request, and beyond the number of files that the directory can hold.
    files = {f"{n}/" + "d/" * 100 + "f": "" for n in range(MAX_FILES)}
    done = mine.run("return 'WORKED'", files=files)

    assert done.error is not None
    assert done.error.code == "DISK_LIMIT_EXCEEDED"
    assert "No space left" in done.error.message


def test_its_memory_and_processes_are_the_profiles(mine: Offered) -> None:
    done = mine.run("held = bytearray(150_000_000)\nreturn 'WORKED'")
    assert done.error is not None
    assert done.error.code == "MEMORY_LIMIT_EXCEEDED"
    done = mine.run("import os\nfor _ in range(6):\n    os.fork() or os.read(0, 1)\nreturn 'WORKED'")
    assert done.error is not None
    assert done.error.code == "PROCESS_LIMIT_EXCEEDED"
    with pytest.raises(RemoteProtocolError, match="67108864 to 134217728 bytes"):
        mine.run("return 1", {"memoryLimitBytes": 200_000_000})


def test_its_limits_are_what_a_session_has_that_sets_none(mine: Offered) -> None:
    code = "for _ in range(3):\n    await call_tool('t')"
    done = mine.run(code, tools={"t": lambda: 1})

    assert done.error is not None
    assert done.error.code == "MAX_TOOL_CALLS_EXCEEDED"


def test_a_generator_that_was_used_before_the_fork_draws_anew_in_each_session(mine: Offered) -> None:
    code = "import random, ssl, tempfile\nreturn ssl.RAND_bytes(16).hex(), tempfile.mktemp(), random.random()"
    first, second = mine.result(code), mine.result(code)

    assert [one for one, other in zip(first, second, strict=True) if one == other] == []


async def test_a_hello_names_the_profiles_and_their_limits(file: str) -> None:
    async with running(profiles_file=file, pool_size=1) as worker, client_of(worker.url) as client:
        assert client.hello["profiles"] == ["python", "mine"]
        assert client.hello["profileLimits"] == {"mine": {"maxToolCalls": 2, "deadlineMs": 40_000}}


async def test_sandboxes_of_two_profiles_never_share_a_place_or_a_user(file: str) -> None:
    async with running(profiles_file=file, pool_size=1, max_sessions=3) as worker:
        assert worker._parts is not None
        places = [place for slots in worker._parts.slots for place in slots._slots.values()]

        assert len(places) == (3 + 2) * (3 + 1 + 16), "of which JavaScript has a kind of its own in one"
        assert len({place.number for place in places}) == len(places)
        assert len({place.uid for place in places} - {0}) in {0, len(places)}, "as root, each has its own"


async def test_a_worker_without_limits_in_its_profiles_says_nothing_of_them(client: Client) -> None:
    assert client.hello["profiles"] == ["python"]
    assert "profileLimits" not in client.hello


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"profile": "python-data"}, "profile"),
        ({"language": "ruby"}, "language"),
        ({"env": {"1": ""}}, "env.1"),
        ({"env": []}, "env"),
        ({"files": {"../a": ""}}, "files.../a"),
        ({"files": {"a": 5}}, "files.a"),
    ],
)
async def test_a_message_with_a_bad_input_is_rejected_by_field(
    client: Client, given: dict[str, object], field: str
) -> None:
    await client.send({"type": "execute", "sessionId": "s_1", "code": "return 1", **given})
    rejection = await client.recv()

    assert (rejection["type"], rejection["sessionId"]) == ("error", "s_1")
    assert rejection["payload"]["field"] == field
    assert (await client.run("return 'served'")).final["result"] == "served"


async def test_inputs_come_by_the_wire_as_well(client: Client) -> None:
    await client.send(
        {
            "type": "execute",
            "sessionId": "s_1",
            "code": "import os\nreturn os.environ['A'], open('b', 'rb').read().hex(), open('c').read()",
            "env": {"A": "1"},
            "files": {"b": {"base64": "/wA="}, "c": "text"},
        }
    )
    assert (await client.finish("s_1")).final["result"] == ["1", "ff00", "text"]


def test_a_packages_directory_is_found_beside_its_file_and_can_not_be_written_to(mine: Offered) -> None:
    code = """
import drawer
try:
    open('/packages/drawer.py', 'a')
    return 'WORKED'
except OSError as error:
    return drawer.__file__, error.errno in (13, 30)
"""
    assert mine.result(code) == ["/packages/drawer.py", True]
