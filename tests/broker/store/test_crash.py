"""A broker that is killed in the middle of writing has lost nothing that it had told anybody."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.broker.store.writer import worker_line
from tests.conformance.stores import opened, read

ROOT = Path(__file__).parents[3]


def killed_after(path: Path, seed: str, lines: int) -> list[str]:
    """Let the writer work until it has said so much, kill it, and return all that it said."""
    command = [sys.executable, "-m", "tests.broker.store.writer", str(path), seed]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout.readlines()
    return [line for line in said if line.endswith("\n")]


async def test_after_a_kill_every_stream_is_a_whole_beginning_of_what_was_sent_and_has_what_was_told(
    tmp_path: Path,
) -> None:
    path = tmp_path / "broker.sqlite"
    told: dict[str, int] = {}
    ended: set[str] = set()
    for seed, lines in (("a", 150), ("b", 1000), ("c", 3001)):
        for line in killed_after(path, seed, lines):
            if found := re.fullmatch(r"told (\S+) (\d+)\n", line):
                told[found[1]] = int(found[2])
            elif found := re.fullmatch(r"ended (\S+)\n", line):
                ended.add(found[1])
        store, loaded = opened(str(path))
        kept = {found.session.session_id: found.log.kept() for found in loaded.live}
        kept |= {session.session_id: await read(session.log) for session in loaded.finished}
        assert ended <= {session.session_id for session in loaded.finished}
        for session_id, seq in told.items():
            assert len(kept[session_id]) >= seq, f"{session_id}: its client was told event {seq}"
        for session_id, stored in kept.items():
            final = [stored[-1]] if b'"final"' in stored[-1] else []
            worker = stored[1 : len(stored) - len(final)]
            assert worker == [worker_line(session_id, seq) for seq in range(2, 2 + len(worker))]
        assert {session.session_id for session in loaded.finished} == {
            session_id for session_id, stored in kept.items() if b'"final"' in stored[-1]
        }
        await store.close()
    assert len(ended) > 20
    assert len(told) > len(ended)
