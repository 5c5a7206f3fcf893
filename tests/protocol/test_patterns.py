"""Patterns mean what they mean in JavaScript. What is expected here was printed by node 20 and minimatch 10."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol.globs import Glob
from enclave_protocol.regexes import PatternError, compile_regex

MATCHING = [
    ("", ""),
    ("b", "abc"),
    ("^$", ""),
    ("a.c", "a\tc"),
    (".", "é"),
    (r"\s", "\ufeff"),
    (r"\s", "\u2028"),
    (r"^\S+$", "\u0085"),
    (r"[^\s]", "\u0085"),
    (r"\u0061\x62", "ab"),
    (r"\ud83d\ude00", "😀"),
    (r"\q\/\-", "q/-"),
    (r"\cJ", "\n"),
    (r"\0", "\0"),
    (r"[\b]", "\b"),
    (r"[\w-]", "-"),
    (r"[a\-c]", "-"),
    (r"[\]a]", "]"),
    ("[[]", "["),
    ("[[:alpha:]]", "a]"),
    ("[^]", "\n"),
    ("a{,2}", "a{,2}"),
    ("a{", "a{"),
    ("x}]", "x}]"),
    ("(?<year>[0-9]{4})-", "2026-"),
    (r"\bis\b", "this is"),
    (r"^(a|b)+?c", "abac"),
]
DIFFERING = [
    ("a.c", "a\nc"),
    (".", "\u2028"),
    ("a$", "a\n"),
    (r"\d", "٣"),
    (r"\w", "é"),
    (r"\s", "\u0085"),
    ("[]", "a"),
    ("[a-c]", "-"),
    (r"[a\-c]", "b"),
    ("A", "a"),
    ("^b", "a\nb"),
]


@pytest.mark.parametrize(("pattern", "text"), MATCHING)
def test_a_regular_expression_is_found_where_javascript_finds_it(pattern: str, text: str) -> None:
    assert compile_regex(pattern, ignore_case=False).found_in(text)


@pytest.mark.parametrize(("pattern", "text"), DIFFERING)
def test_a_regular_expression_is_not_found_where_javascript_does_not_find_it(pattern: str, text: str) -> None:
    assert not compile_regex(pattern, ignore_case=False).found_in(text)


REFUSED = [
    *("(?=a)", "(?!a)", "(?<=a)", "(?<!a)", r"(a)\1", r"(?<n>a)\k<n>", r"\p{L}", "(?i)a", "(?P<n>a)", "a**", "(", ")"),
    *("[", "[b-a]", "a\\", r"\ud800", "*", "{1}", "a{1001}", "(a{100}){100}"),
]


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_cannot_be_matched_in_bounded_time_or_not_at_all_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError) as refused:
        compile_regex(pattern, ignore_case=False)
    assert refused.value.allowed


def test_the_work_of_an_evil_expression_is_bounded_by_its_size() -> None:
    # For a backtracking engine each of these is the work of years.
    for pattern in ("(a+)+$", "(a|a)*$", "(a|aa)+$", "(.*)*x", "([a-zA-Z]+)*$", "(a?){30}a{30}"):
        regex = compile_regex(pattern, ignore_case=False)
        assert regex.size < 200
        regex.found_in("a" * 9_999 + "!")


@given(st.text(alphabet=r"ab\[](){}^$.*+?|,-/0123dDwWsSbBcuxkp<>=!:é", max_size=20), st.text(max_size=20))
def test_any_pattern_compiles_or_is_refused_and_never_does_anything_else(pattern: str, text: str) -> None:
    for kind in ("regex", "glob"):
        try:
            if kind == "regex":
                compile_regex(pattern, ignore_case=True).found_in(text)
            else:
                Glob(pattern, ignore_case=True).matches(text)
        except PatternError:
            pass


GLOBS = [
    ("*.py", "a.py", True),
    ("*.py", "d/a.py", False),
    ("*.py", ".py", False),
    ("**/*.py", "d/e/a.py", True),
    ("**/*.py", "a.py", True),
    ("**", "a/b", True),
    ("**", ".a/b", False),
    ("a/**", "a", False),
    ("a/**", "a/", True),
    ("a/**/b", "a/b", True),
    ("a/**/b", "a/.x/b", False),
    ("a*", "a\nb", True),
    ("*", "", False),
    ("", "", True),
    ("?", ".", False),
    ("?", "é", True),
    ("a?", "a.", True),
    (".*", ".a", True),
    ("[!a]", "b", True),
    ("[!a]", "/", False),
    ("[^.]", ".", False),
    ("[.a]b", ".b", False),
    ("[.a]b", "ab", True),
    ("[]a]", "]", True),
    ("a", "a/", True),
    ("a//b", "a/b", True),
    ("get_{user,team}", "get_team", True),
    ("v{1..3}", "v2", True),
    ("v{3..1}", "v1", True),
    ("{a..c}", "b", True),
    ("{a}", "{a}", True),
    ("{a,{b,c}d}", "cd", True),
    ("@(a|b)c", "bc", True),
    ("?(a)b", "b", True),
    ("*(ab)", "abab", True),
    ("*(ab)", "", True),
    ("+(ab)", "", False),
    ("@(.a|*b)", ".a", True),
    ("@(.a|*b)", ".b", False),
    ("!a", "b", True),
    ("!a", "a", False),
    ("!!a", "a", True),
    ("#a", "#a", False),
    (r"\#a", "#a", True),
    (r"\*", "*", True),
    (r"\*", "a", False),
    ("a[", "a[", True),
    ("a(b", "a(b", True),
]


@pytest.mark.parametrize(("pattern", "text", "expected"), GLOBS)
def test_a_glob_matches_what_minimatch_matches(pattern: str, text: str, expected: bool) -> None:  # noqa: FBT001
    assert Glob(pattern, ignore_case=False).matches(text) is expected


TOO_MUCH = ["a!(b)", "[[:alpha:]]", "{1..99}", "{a,b}" * 7, "{" + "a," * 70 + "b}", "a" * 257]


@pytest.mark.parametrize("pattern", TOO_MUCH)
def test_a_glob_that_takes_too_much_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError) as refused:
        Glob(pattern, ignore_case=False)
    assert refused.value.allowed
