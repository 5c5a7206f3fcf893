"""A program that keeps sessions in a file for ever, and says what their clients were told. It is there to be killed.

Lines of its output: `told SESSION SEQ`, each once that event could be read; `ended SESSION`, once its final could be.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from typing import TYPE_CHECKING

from enclave_broker.directory import Directory
from enclave_broker.sessions import BrokerSession
from enclave_protocol import Execute, Limits, peek
from tests.conformance.stores import event, final, opened

if TYPE_CHECKING:
    from enclave_broker.store.sqlite import SqliteStore


def worker_line(session_id: str, seq: int) -> bytes:
    """Return what the worker of a session sent as this event, which can be told from its number."""
    return event(session_id, seq, chunk=f"{session_id} {seq} " + "x" * (seq * 37 % 3000))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Writer:
    def __init__(self, store: SqliteStore, seed: str) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.directory = Directory(store, max_finished=10_000, max_bytes=1 << 40, max_age_s=1e9)
        self.sessions: list[BrokerSession] = []

    def add(self, session_id: str) -> None:
        now = time.monotonic()
        request = Execute(session_id=session_id, code="1")
        log = self.store.new_log(1 << 20)
        session = BrokerSession(session_id, request, Limits(), now=now, wall=time.time(), log=log)
        self.directory.add(session)
        session.worker = session.worker_name = "w"
        session.execute(now)
        self.store.update(session)
        self.sessions.append(session)
        cursor = log.subscribe(1, lambda: None)
        told = 0

        def tell() -> None:
            nonlocal told
            for _ in cursor.take():
                told += 1
                say(f"told {session_id} {told}")
            if cursor.finished:
                say(f"ended {session_id}")

        cursor.wake = tell

    def step(self) -> None:
        session = self.random.choice(self.sessions)
        session_id, seq = session.session_id, session.log.next_seq
        last = self.random.random() < 0.05
        line = final(session_id, seq) if last else worker_line(session_id, seq)
        session.accept(peek(line), line, time.monotonic())
        if last:
            self.sessions.remove(session)
            self.directory.finish(session)


async def main(path: str, seed: str) -> None:
    store, _ = opened(path)
    writer = Writer(store, seed)
    number = 0
    while True:
        if len(writer.sessions) < 20:
            number += 1
            writer.add(f"s_{seed}_{number}")
        for _ in range(writer.random.randrange(10)):
            if writer.sessions:
                writer.step()
        await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
