"""What the pages have from the code is what the code says, and what they link to is there."""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING

import pytest

from enclave_worker.zygote.kernel import ROOT_CAPABILITIES
from tests.docs.pages import PAGES, ROOT

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_generated_parts_are_up_to_date(generate: ModuleType, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert generate.render(text) == text, "run: python docs/generate.py"


def test_every_part_stands_on_one_page(generate: ModuleType) -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    assert sorted(re.findall(r"<!-- generated: (\w+) -->", "\n".join(texts))) == sorted(generate.PARTS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """A link to a file finds it, one to a heading finds that, and one that is called as a test finds the test."""
    for text, target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if heading:
            assert heading in headings(file), f"{page.name}: {target}"
        for test in re.findall(r"`(test_\w+)`", text):
            assert f"def {test}(" in file.read_text(encoding="utf-8"), f"{page.name}: {test} is not in {target}"


def test_a_guarantee_without_a_test_is_no_guarantee() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        if section[0].isdigit():
            assert re.search(r"\[`test_\w+`\]\(\.\./tests/", section), section.splitlines()[0]


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_the_lines_of_the_troubleshooting_table_are_lines_that_the_programs_write() -> None:
    """Compared piece by piece between the `…`, which stand for what varies."""
    sources = "".join(
        path.read_text(encoding="utf-8")
        for package in ("broker", "client", "protocol", "worker")
        for path in (ROOT / package).rglob("*.py")
    )
    table = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").partition("## Troubleshooting")[2]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert len(rows) > 10
    system_says = {"Address already in use", "Network is unreachable", "ModuleNotFoundError"}
    for said in re.findall(r"`([^`]+)`", " ".join(rows)):
        for piece in said.split("…"):
            words = piece.strip(" ':;")
            assert words in sources or words in system_says, said


def test_the_page_names_the_capabilities_that_root_needs() -> None:
    page = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")
    sentence = page[page.index("*Root* means") :].partition(";")[0]
    assert {name.removeprefix("CAP_") for name in re.findall(r"`(CAP_\w+)`", sentence)} == set(ROOT_CAPABILITIES)
