"""The project's pages, and the examples in them.

An example is a fenced block of `console`, `python` or `bash`. One mechanism runs them all:

- `python`, followed by a `text` block: a program, and what it prints;
- `python` that begins with `# NAME.py`: a file, for the commands after it on its page;
- `console`: commands after `$ `, each followed by what it prints; `…` stands for any text within a line;
- `bash`: a script that ends well.

`<!-- not run: WHY -->` above a block says why it is not one of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("console", "python", "bash")

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$"
    r"(?:\n\n^```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"# (\w+\.py)\n")


class Block(NamedTuple):
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str
    printed: str | None
    why_not: str | None
    files: dict[str, str]
    """Files that the page showed before it."""

    @property
    def file_name(self) -> str | None:
        """The file that it shows, if it shows one."""
        found = _FILE.match(self.text) if self.language == "python" else None
        return found[1] if found else None

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of a `console` block, each with what it prints."""
        _, *parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        return [(command, printed) for command, _, printed in (part.partition("\n") for part in parts)]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks() -> list[Block]:
    """Every fenced block that names a language."""
    return [block for page in PAGES for block in _blocks_of(page)]


def _blocks_of(page: Path) -> list[Block]:
    text, files, found = page.read_text(encoding="utf-8"), dict[str, str](), list[Block]()
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        language, body, printed, why = match["language"], match["text"], match["printed"], match["why"]
        block = Block(page, line, language, body, printed, why, dict(files))
        if block.file_name:
            files[block.file_name] = body
        found.append(block)
    return found
