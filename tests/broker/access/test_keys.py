"""The keys file: hashes only, read strictly, and errors that never show what may be a secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_broker.access import Quotas, Scope, parse_book
from enclave_broker.access.caller import DEFAULT_KEY_SCOPES
from enclave_broker.access.keys import Book, key_lines, new_key

KEY, ID = new_key()
ENTRY = key_lines(KEY, ID, "acme", DEFAULT_KEY_SCOPES)


def test_a_key_is_found_by_itself_and_by_nothing_else() -> None:
    other, _ = new_key()
    book = parse_book(ENTRY)
    found = book.find(KEY)
    assert found is not None
    assert (found[0], found[1].tenant, found[1].scopes) == (ID, "acme", DEFAULT_KEY_SCOPES)
    flipped = KEY[:-1] + ("A" if KEY[-1] != "A" else "B")
    for wrong in (other, flipped, KEY + "A", KEY[:-1], f"ek_{ID}_" + "A" * 43, f" {KEY}", KEY.upper(), "", "ek_"):
        assert book.find(wrong) is None


def test_the_file_has_neither_the_key_nor_a_part_of_its_secret() -> None:
    secret = KEY.removeprefix(f"ek_{ID}_")
    assert not any(secret[i : i + 8] in ENTRY for i in range(len(secret) - 8))


def test_keys_differ_in_id_and_secret() -> None:
    made = [new_key() for _ in range(200)]
    assert len({key for key, _ in made}) == len({key_id for _, key_id in made}) == 200


def test_entries_can_stand_anywhere_in_the_file() -> None:
    key, key_id = new_key()
    scopes = frozenset({Scope.READ, Scope.METRICS})
    text = f"{ENTRY}\n[tenants.acme.quotas]\nconcurrent_sessions = 3\n\n{key_lines(key, key_id, 'ops', scopes)}"
    book = parse_book(text)
    assert book.tenants["acme"].quotas == Quotas(concurrent_sessions=3)
    assert book.keys[key_id].scopes == scopes
    assert book.keys[ID].scopes == DEFAULT_KEY_SCOPES


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[keys", "not TOML"),
        ('colour = "red"', "unknown tables"),
        ("keys = 3", "keys: not a table"),
        (f'[keys."{KEY}"]\ntenant = "acme"', "keys: the name of number 1"),
        (f'[keys.{ID}]\ntenant = "acme"\nsha256 = "{KEY}"', f"keys.{ID}.sha256"),
        (f'[keys.{ID}]\ntenant = "acme"', "sha256"),
        (f'[keys.{ID}]\ntenant = "acme"\nsha256 = "{"a" * 64}"\n"{KEY}" = 1', "unknown field"),
        (f'[keys.{ID}]\ntenant = "acme"\nsha256 = "{"a" * 64}"\nscopes = ["{KEY}"]', f"keys.{ID}.scopes"),
        (f'[keys.{ID}]\ntenant = "{KEY}"\nsha256 = "{"a" * 64}"', f"keys.{ID}.tenant: not a tenant's name"),
        (f'[tenants."{KEY}"]', "tenants: the name of number 1"),
        ("[tenants.acme.quotas]\nconcurrent_sessions = -1", "tenants.acme.quotas.concurrent_sessions"),
        ("[tenants.acme.quotas]\nsessions = 1", "unknown field `sessions`"),
        ("[tenants.acme.limits]\nheartbeatIntervalMs = 1", "tenants.acme.limits"),
        ("[tenants.acme.limits]\ndeadlineMs = 0", "tenants.acme.limits"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_without_its_value(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_book(text)
    assert said in str(caught.value)
    assert KEY not in str(caught.value)
    assert KEY.removeprefix(f"ek_{ID}_")[:12] not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_a_book_or_refused(text: str) -> None:
    try:
        read: Book | str = parse_book(text)
    except ValueError as error:
        read = str(error)
    assert isinstance(read, Book) or read.startswith(("not TOML", "keys", "tenants")) or "unknown tables" in read
