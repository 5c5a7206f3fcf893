"""Which languages a worker offers, and from which zygotes."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from enclave_worker import offers
from enclave_worker.languages import lacking
from enclave_worker.profiles import Profile, ProfileError
from tests.support import PATIENCE_S, client_of, running
from tests.worker.profile_files import write

if TYPE_CHECKING:
    from pathlib import Path

    from enclave_protocol.languages import Language
    from enclave_worker.offers import Kind

WITHOUT_THE_ENGINE = """
import importlib.util, sys
from enclave_worker.cli import main
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "_quickjs" else found(name, *more)
main()
"""


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host without the library."""
    monkeypatch.setattr(offers, "lacking", lambda: {"javascript": "it is not installed"})


@pytest.mark.parametrize(
    ("languages", "bare", "kinds"),
    [
        (("python", "javascript", "shell"), True, ("full", "bare", "javascript")),
        (("python", "shell"), True, ("full", "bare")),
        (("python", "shell"), False, ("full",)),
        (("shell",), False, ("bare",)),
        (("javascript",), True, ("javascript",)),
        (("shell", "javascript"), False, ("bare", "javascript")),
    ],
)
def test_a_profile_has_a_zygote_for_each_kind_of_its_languages_and_no_other(
    languages: tuple[Language, ...],
    bare: bool,  # noqa: FBT001 - a parameter of the test
    kinds: tuple[Kind, ...],
) -> None:
    assert offers.kinds(Profile(name="p", languages=languages, bare=bare)) == kinds


@pytest.mark.usefixtures("no_engine")
def test_without_the_engine_a_profile_offers_its_other_languages_unless_javascript_is_its_first() -> None:
    assert offers.offered_languages(Profile(name="p", languages=("shell", "javascript"))) == ("shell",)
    assert offers.kinds(Profile(name="p", languages=("python", "javascript"))) == ("full",)
    with pytest.raises(ProfileError, match="'p', languages: no javascript on this host: it is not installed"):
        offers.offered_languages(Profile(name="p", languages=("javascript", "python")))


def test_this_host_lacks_none() -> None:
    assert lacking() == {}


def test_a_worker_without_the_engine_says_how_to_get_it_and_starts_unless_it_cannot_do_without(tmp_path: Path) -> None:
    file = write(tmp_path, "[profiles.js]\nlanguages = ['javascript']")
    script = tmp_path / "worker.py"
    script.write_text(WITHOUT_THE_ENGINE)
    command = [sys.executable, str(script), "--port", "0", "--profiles", file, "--profile", "js"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert "no javascript on this host: quickjs-ng is not installed" in done.stderr
    assert "pip install 'enclave[javascript]'" in done.stderr


async def test_hello_says_which_languages_each_profile_has_and_each_runs(tmp_path: Path) -> None:
    file = write(tmp_path, "[profiles.js]\nlanguages = ['javascript', 'shell']")
    async with (
        running(profiles_file=file, profiles=("js",), pool_size=1) as worker,
        client_of(worker.url) as client,
    ):
        assert client.hello["languages"] == ["javascript", "shell"]
        assert client.hello["profileLanguages"] == {"js": ["javascript", "shell"]}
        request = {"type": "execute", "sessionId": "s_1", "profile": "js"}
        for more, result in (({"code": "return 3"}, 3), ({"code": "exit 3", "language": "shell"}, {"exitCode": 3})):
            await client.send({**request, **more})
            assert (await client.finish("s_1")).final["result"] == result
            client.forget("s_1")
        refusal = await client.rejection({"type": "execute", "code": "1", "profile": "js", "language": "python"})
        assert (refusal["payload"]["field"], refusal["payload"]["allowed"]) == ("language", "javascript, shell")


@pytest.mark.usefixtures("no_engine")
async def test_a_worker_without_the_engine_serves_the_other_languages() -> None:
    async with running(pool_size=1) as worker, client_of(worker.url) as client:
        assert client.hello["languages"] == ["python", "shell"]
        refusal = await client.rejection({"type": "execute", "code": "1", "language": "javascript"})
        assert refusal["payload"]["allowed"] == "python, shell"
        assert (await client.run("return 1")).final["result"] == 1
