"""`enclave keys`: what it prints is a key that a broker knows by what it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from enclave_broker import create_broker
from enclave_broker.access import Scope, parse_book
from enclave_broker.access.caller import DEFAULT_KEY_SCOPES
from enclave_client.cli import main
from enclave_protocol.credentials import parse_secrets

if TYPE_CHECKING:
    from pathlib import Path


def keys(*options: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["keys", *options])
    return done.exit_code, done.output


def test_a_key_comes_with_the_entry_that_a_broker_knows_it_by() -> None:
    code, printed = keys("new", "--tenant", "acme")
    key, _, entry = printed.partition("\n\n")
    found = parse_book(entry).find(key)
    assert code == 0
    assert found is not None
    assert (found[1].tenant, found[1].scopes) == ("acme", DEFAULT_KEY_SCOPES)


def test_a_keys_file_grows_by_an_entry_and_nothing_but_the_key_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("# ours\n[tenants.acme.quotas]\nconcurrent_sessions = 1")  # without a newline at its end
    printed = [keys("new", "--tenant", "acme", "--keys-file", str(path), "--scope", "sessions:read") for _ in range(2)]
    book = parse_book(path.read_text())
    for _, key in printed:
        found = book.find(key.strip())
        assert found is not None
        assert found[1].scopes == {Scope.READ}
        assert key.strip() not in path.read_text()
    assert book.tenants["acme"].quotas.concurrent_sessions == 1


def test_secrets_are_such_as_programs_take() -> None:
    (_, one), (_, other) = keys("secret"), keys("secret")
    assert len(parse_secrets(one + other)) == 2
    assert one != other


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("new",), "--tenant"),
        (("new", "--tenant", "Acme Inc"), "not a tenant's name"),
        (("new", "--tenant", 'a"\nsha256 = "'), "not a tenant's name"),
        (("new", "--tenant", "acme", "--scope", "everything"), "sessions:create"),
        (("new", "--tenant", "acme", "--keys-file", "/no/such/directory/keys"), "No such file"),
    ],
)
def test_what_is_wrong_is_said(options: tuple[str, ...], said: str) -> None:
    code, printed = keys(*options)
    assert code in {1, 2}
    assert said in printed
    assert "ek_" not in printed


def test_a_broker_takes_its_keys_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _, printed = keys("new", "--tenant", "acme")
    key, _, entry = printed.partition("\n\n")
    monkeypatch.setenv("ENCLAVE_KEYS", entry)
    gate = create_broker(host="0.0.0.0").dispatcher.gate
    assert gate.caller({"headers": [(b"authorization", f"Bearer {key}".encode())]}).tenant == "acme"
