"""Which links to start, drain and stop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enclave_broker.finding.changes import Changes, Present, compare

NAMES = st.sets(st.sampled_from("abcdef"))


def test_each_kind_of_change() -> None:
    present = {
        "kept": Present.KEPT,
        "left": Present.KEPT,
        "back": Present.RETIRED_BUSY,
        "back idle": Present.RETIRED_IDLE,
        "busy": Present.RETIRED_BUSY,
        "idle": Present.RETIRED_IDLE,
        "stopping": Present.STOPPING,
        "stopping, wanted": Present.STOPPING,
    }
    assert compare(["kept", "new", "back", "back idle", "stopping, wanted"], present) == Changes(
        start=("new",), retire=("left",), take_back=("back", "back idle"), stop=("idle",)
    )


@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=10))
def test_links_follow_the_list_and_no_busy_one_is_stopped(history: list[tuple[set[str], set[str]]]) -> None:
    present: dict[str, Present] = {}
    for wanted, busy in history:
        for _ in range(2):  # what left is retired by the first comparison, and stopped by the second
            now = {
                name: Present.RETIRED_BUSY if name in busy else Present.RETIRED_IDLE
                for name, state in present.items()
                if state is not Present.KEPT
            }
            changes = compare(wanted, present | now)
            assert not set(changes.stop) & busy
            for name in changes.start + changes.take_back:
                present[name] = Present.KEPT
            for name in changes.retire:
                present[name] = Present.RETIRED_IDLE
            for name in changes.stop:
                del present[name]
        kept = {name for name, state in present.items() if state is Present.KEPT}
        assert kept == wanted
        assert present.keys() - kept <= busy
    assert compare(wanted, present | dict.fromkeys(present.keys() - wanted, Present.RETIRED_BUSY)) == Changes()
