"""What tools are called."""

from __future__ import annotations

from enclave_broker.tools.sources.naming import safe_name
from enclave_broker.tools.tool import MAX_NAME_CHARS


def test_a_name_is_made_of_letters_that_every_language_can_say() -> None:
    assert safe_name("pets_list all/pets (ä)") == "pets_list_all_pets"
    assert safe_name("äöü") == "tool"


def test_a_name_that_is_too_long_is_cut_and_still_its_own() -> None:
    long = safe_name("x" * 200)
    assert len(long) == MAX_NAME_CHARS
    assert long != safe_name("x" * 201)
