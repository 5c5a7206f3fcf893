"""The abuse corpus that lies beside the checkout, run against `enclave run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import USER

from .corpora import APPLIES, SHARED

if TYPE_CHECKING:
    from .conftest import Corpora


@pytest.mark.skipif(not APPLIES, reason=f"no abuse corpus at {SHARED}, or not root, who alone can plant its secrets")
@pytest.mark.parametrize("who", ["root", "user"])
def test_the_corpus_of_abuse_gets_nothing(who: str, corpora: Corpora) -> None:
    runs = [run.result() for run in corpora.shared[who]]

    assert {ran.owner for ran in runs} == {USER if who == "user" else 0}, "the fleets really were an ordinary user's"
    failed = [
        f"{case['id']} {case['name']}: {'; '.join(case['problems'] or case['notes'])}"
        for ran in runs
        for case in ran.results
        if case["verdict"] not in {"pass", "NOTE"}
    ]
    assert not failed, "\n".join(failed)
