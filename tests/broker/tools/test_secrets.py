"""Secrets: where they come from, and that they are found in what leaves."""

from __future__ import annotations

import base64
import json
import logging
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_broker import ScrubbedFormatter, Secrets, ToolFailure
from enclave_broker.tools import read_secrets, take_from_environment
from enclave_broker.tools.secrets import Scrubber

if TYPE_CHECKING:
    from pathlib import Path

KEY = 'sk-"live"/42+ü&\\x'
TEXTS = st.text(st.characters(codec="utf-8"), min_size=6, max_size=40)


def test_a_missing_secret_is_an_error_with_its_name() -> None:
    secrets = Secrets({"ONE": "123456", "TWO": "abcdef"})
    assert secrets.pick("t", ["TWO"]) == {"TWO": "abcdef"}
    with pytest.raises(ToolFailure, match="t needs the secret 'THREE'") as missing:
        secrets.pick("t", ["ONE", "THREE"])
    assert missing.value.code == "SECRET_ERROR"


@pytest.mark.parametrize("value", ["12345", "", "x" * 20_000, 123456, None])
def test_what_can_not_be_scrubbed_is_no_secret_and_is_not_quoted(value: Any) -> None:
    with pytest.raises(ValueError, match="secret 'KEY'") as refused:
        Secrets({"KEY": value})
    assert str(value) not in str(refused.value) or not value


def test_a_name_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="'a-b'"):
        Secrets({"a-b": "123456"})


def test_secrets_do_not_show_in_a_repr() -> None:
    assert repr(Secrets({"KEY": "123456"})) == "<Secrets KEY>"


def test_the_environment_is_relieved_of_them() -> None:
    environ = {"ENCLAVE_SECRET_KEY": "123456", "ENCLAVE_SECRETS": "/a/path", "PATH": "/bin"}
    assert take_from_environment(environ) == {"KEY": "123456"}
    assert environ == {"ENCLAVE_SECRETS": "/a/path", "PATH": "/bin"}


def test_a_file_or_a_directory_may_hold_them(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text('{"KEY": "123456"}')
    assert read_secrets(tmp_path / "secrets.json") == {"KEY": "123456"}
    mounted = tmp_path / "mounted"
    (mounted / "..data").mkdir(parents=True)
    (mounted / "..data" / "KEY").write_text("123456\n")
    (mounted / "KEY").symlink_to("..data/KEY")
    (mounted / "OTHER").write_text("two\nlines\n\n")
    assert read_secrets(mounted) == {"KEY": "123456", "OTHER": "two\nlines\n"}


@pytest.mark.parametrize("content", [b"[1]", b"{'KEY': 'value'}", b'{"KEY": 5}', b"\xff\xfe", None])
def test_a_file_that_holds_something_else_is_an_error_that_quotes_nothing(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "secrets.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"secrets\.json") as refused:
        read_secrets(path)
    assert refused.value.__cause__ is None or content is None
    assert "value" not in str(refused.value)


def spelled(secret: str, before: str, after: str) -> dict[str, str]:
    """Return the ways in which something with a secret in it may leave."""
    whole = before + secret + after
    return {
        "as it is": whole,
        "json": json.dumps({"k": whole}),
        "json in json": json.dumps(json.dumps({"k": whole})),
        "json, plain": json.dumps([whole], ensure_ascii=False),
        "repr": repr({"k": before + secret}),
        "url path": quote(whole, safe=""),
        "url": quote(whole),
        "form": urlencode({"k": whole}),
        "lower case url": re.sub("%..", lambda match: match[0].lower(), quote_plus(whole)),
        "base64": base64.b64encode(whole.encode()).decode(),
        "base64 for urls": base64.urlsafe_b64encode(whole.encode()).decode().rstrip("="),
        "hex": whole.encode().hex(),
    }


@pytest.mark.parametrize("before", ["", "a", "user:", "日本"])
@pytest.mark.parametrize("secret", [KEY, "123456", "x" * 40, "-----BEGIN KEY-----\nAAAA\n-----END KEY-----\n"])
def test_a_secret_is_found_in_every_spelling_that_is_promised(secret: str, before: str) -> None:
    scrubber = Secrets({"KEY": secret}).scrubber
    for how, text in spelled(secret, before, "!").items():
        cleaned = scrubber.clean(text)
        assert "[secret:KEY]" in cleaned, how
        assert "[secret:KEY]" in scrubber.clean_json(msgspec.json.encode([{"a": [text]}])).decode(), how


@given(TEXTS, st.text(st.characters(codec="utf-8"), max_size=4), st.text(st.characters(codec="utf-8"), max_size=4))
def test_no_secret_is_left_in_text_or_json(secret: str, before: str, after: str) -> None:
    scrubber = Scrubber({"K": secret})
    for text in (before + secret + after, json.dumps(before + secret + after)):
        assert secret not in scrubber.clean(text) or secret in "[secret:K]"
        value = {text: [text, {"x": text}]}
        cleaned = msgspec.json.decode(scrubber.clean_json(msgspec.json.encode(value)))
        assert (
            not any(secret in each for each in (*cleaned, *(v[0] for v in cleaned.values()))) or secret in "[secret:K]"
        )


@given(TEXTS, st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5), st.lists))
def test_json_stays_json_and_what_has_no_secret_stays_as_it_is(secret: str, value: Any) -> None:
    text = msgspec.json.encode(value)
    scrubber = Scrubber({"K": secret})
    assert scrubber.clean_json(text) == text
    # In JSON text, the tail of an escape or a bit of structure may look like a secret.
    for odd in ('","', "n" + secret, '\\"' + secret, secret[:3] + '","' + secret[3:]):
        Scrubber({"K": odd + "123456"}).clean_json(msgspec.json.encode([value, "\n" + odd, odd + "123456"]))


def test_what_only_looks_like_a_secret_in_json_text_is_left_alone() -> None:
    scrubber = Scrubber({"K": "nabcdef"})
    text = msgspec.json.encode(["\nabcdef"])
    assert b"nabcdef" in text
    assert scrubber.clean_json(text) == text


def test_a_number_may_be_a_secret() -> None:
    assert Scrubber({"PIN": "123456"}).clean_json(b'{"n":123456,"m":[1234567.5,12345]}') == (
        b'{"n":"[secret:PIN]","m":["[secret:PIN]7.5",12345]}'
    )


def test_of_two_secrets_the_longer_is_taken_first() -> None:
    assert Scrubber({"A": "123456", "B": "12345678"}).clean("x12345678x123456") == "x[secret:B]x[secret:A]"


def test_log_lines_have_no_secrets_not_even_in_their_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    formatter = ScrubbedFormatter(logging.Formatter("%(message)s"), Scrubber({"K": "hunter2-hunter2"}))
    try:
        int("hunter2-hunter2")
    except ValueError:
        logging.getLogger("enclave.broker").exception("header %s", "hunter2-hunter2")
    line = formatter.format(caplog.records[0])
    assert "header [secret:K]" in line
    assert "ValueError: invalid literal" in line
    assert "hunter2" not in line
