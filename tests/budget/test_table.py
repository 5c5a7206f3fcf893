"""The table of budgets: what it says of a figure that has grown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.budget import table

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """
Measured with Python 3.11 on x86_64.

| figure | budget | measured | why it matters |
|---|---|---|---|
| some_calls | 12 | 10 | a session's |
| some_kib | 120 | 100 | the same |

| figure | system calls |
|---|---|
| some_calls | read 6, write 4 |
"""


def test_a_figure_within_its_budget_is_no_complaint(tmp_path: Path) -> None:
    (tmp_path / "budget.md").write_text(TEXT)
    budget = table.read(tmp_path / "budget.md")

    assert list(budget) == ["some_calls", "some_kib"]
    assert table.complaint(budget["some_calls"], {"read": 8, "write": 4}) == ""
    assert table.complaint(budget["some_kib"], {"": 120}) == ""


def test_a_complaint_says_what_grew_and_from_what(tmp_path: Path) -> None:
    (tmp_path / "budget.md").write_text(TEXT)
    budget = table.read(tmp_path / "budget.md")

    told = table.complaint(budget["some_calls"], {"read": 7, "write": 4, "openat": 3})

    assert told == (
        "some_calls is 14, was 10 and may be 12; what grew: openat 0 → 3, read 6 → 7. Why it matters: a session's"
    )
    assert table.complaint(budget["some_kib"], {"": 121}).startswith("some_kib is 121, was 100 and may be 120. Why")


def test_writing_changes_the_numbers_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "budget.md"
    file.write_text(TEXT)

    table.write({"some_calls": {"write": 3, "read": 97}}, file)

    written = TEXT.replace("| 12 | 10 |", "| 104 | 100 |").replace("read 6, write 4", "read 97, write 3")
    here = "Python {} on {}".format(*table.here())
    assert file.read_text() == written.replace("Python 3.11 on x86_64", here)
    assert table.why_not_held("some_kib", "SECURE", file) == ""


def test_memory_is_not_held_to_what_another_python_needs(tmp_path: Path) -> None:
    file = tmp_path / "budget.md"
    file.write_text(TEXT.replace("Python 3.11 on x86_64", f"Python 3.1 on {table.here()[1]}"))

    assert table.why_not_held("some_kib", "SECURE", file) == "not held: measured with Python 3.1"
    assert table.why_not_held("some_calls", "SECURE", file) == ""


def test_nothing_is_held_of_a_worker_with_fewer_layers(tmp_path: Path) -> None:
    file = tmp_path / "budget.md"
    file.write_text(TEXT.replace("3.11 on x86_64", "{} on {}".format(*table.here())))

    assert table.why_not_held("some_calls", "STANDARD", file) == "not held: measured at level SECURE"
    assert table.why_not_held("some_calls", "SECURE", file) == ""


def test_of_several_runs_each_figure_is_picked_by_itself() -> None:
    one = table.Measured("SECURE", {"a_calls": {"read": 3}, "b_calls": {"read": 1, "write": 1}})
    other = table.Measured("SECURE", {"a_calls": {"write": 2}, "b_calls": {"read": 9}})

    assert table.pick(min, one, other).figures == {"a_calls": {"write": 2}, "b_calls": {"read": 1, "write": 1}}
    assert table.pick(max, one, other).figures == {"a_calls": {"read": 3}, "b_calls": {"read": 9}}
