"""The demo: a broker and two workers on this machine, and what they do with seven pieces of code.

Starts the same programs as `enclave up`, sends `samples/*` by the client library, prints every event
as it comes and which worker it came from, and checks that each sample ended as it should. Exits with 0 if all did.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from enclave_client import AnyEvent, AsyncClient, EnclaveError
from enclave_client import events as ev
from enclave_client.fleet import FleetError, FleetSpec, running_fleet

if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_protocol import FinalPayload

HERE = Path(__file__).parent
WIDTH = 100
DEMO_TIMEOUT_S = 120.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One piece of code, and how it must end."""

    name: str
    title: str
    ends_well: Callable[[FinalPayload], bool]
    limits: dict[str, int] = dataclasses.field(default_factory=dict)
    language: str = "python"

    @property
    def code(self) -> str:
        """Its source."""
        ending = {"python": "py", "javascript": "js"}[self.language]
        return (HERE / "samples" / f"{self.name}.{ending}").read_text(encoding="utf-8")


def result(final: FinalPayload) -> Any:
    """Return the result of a session that ended well, else an empty dict."""
    return final.result if final.ok and final.result is not UNSET else {}


def code(final: FinalPayload) -> str:
    """Return why a session failed."""
    return str(final.error.code) if final.error is not UNSET else ""


SAMPLES = (
    Sample(name="hello", title="output is live", ends_well=lambda final: final.ok),
    Sample(
        name="compute",
        title="a computation has a result",
        ends_well=lambda final: result(final).get("largest") == 59,
    ),
    Sample(
        name="tools",
        title="the code calls the application's tools, three of them at once",
        ends_well=lambda final: result(final).get("authorized") is True and result(final).get("paid_cents") == 335,
    ),
    Sample(
        name="javascript",
        title="so does code in JavaScript",
        language="javascript",
        ends_well=lambda final: result(final).get("total_cents") == 335,
    ),
    Sample(
        name="exception",
        title="an exception comes back whole",
        ends_well=lambda final: code(final) == "EXECUTION_ERROR" and "line 3" in str(final.error),
    ),
    Sample(
        name="endless",
        title="an endless loop meets its deadline",
        limits={"deadlineMs": 1000},
        ends_well=lambda final: code(final) == "DEADLINE_EXCEEDED",
    ),
    Sample(
        name="escape",
        title="reading the host's files and reaching its network fail",
        ends_well=lambda final: (
            result(final) == {"refused": True, "other processes": [], "keys in the environment": []}
        ),
    ),
)


def describe(event: AnyEvent) -> str:  # noqa: PLR0911 - one per type
    """Say in one line (a traceback has more) what an event says."""
    match event:
        case ev.Stdout() | ev.Stderr():
            return "\n".join(json.dumps(line, ensure_ascii=False) for line in event.payload.chunk.splitlines(True))
        case ev.ToolCall():
            return f"{event.payload.tool_name}({msgspec.json.encode(event.payload.args).decode()})"
        case ev.ToolResultApplied():
            return event.payload.call_id
        case ev.DeadlineExceeded():
            return f"after {event.payload.elapsed_ms:.0f} of {event.payload.budget_ms:.0f} ms"
        case ev.Log():
            return f"[{event.payload.level}] {event.payload.message}"
        case ev.Final():
            return describe_final(event.payload)
        case ev.SessionInit():
            return event.session_id
    return ""


def describe_final(final: FinalPayload) -> str:
    """Say how a session ended, and what it took."""
    if final.ok:
        text = "ok, result " + msgspec.json.encode(None if final.result is UNSET else final.result).decode()
    else:
        text = f"{code(final)}: {final.error.message if final.error is not UNSET else ''}"
        stack = final.error.stack if final.error is not UNSET else UNSET
        text += "".join("\n" + line for line in stack.rstrip().splitlines()) if stack is not UNSET else ""
    if final.stats is not UNSET:
        stats = final.stats
        text += f"\ntook {stats.duration_ms:.1f} ms, {stats.cpu_ms:.1f} ms of CPU, {stats.peak_memory_bytes >> 20} MiB"
    return text


def show(event: AnyEvent, elapsed_s: float) -> None:
    """Print one event."""
    kind = ev_type(event)
    first, *more = describe(event).splitlines() or [""]
    print(f"  {elapsed_s:6.3f} s  {kind:<20} {first}", flush=True)
    for line in more:
        print(f"  {'':8}  {'':<20} {line}", flush=True)


def ev_type(event: AnyEvent) -> str:
    """Return the event's name on the wire."""
    return str(type(event).__struct_config__.tag)


async def run(client: AsyncClient, sample: Sample, on_event: Callable[[AnyEvent, float], None]) -> tuple[bool, str]:
    """Run a sample to its end; return whether it ended as it should, and the worker that ran it."""
    started = time.monotonic()
    final = None
    async with client.stream(sample.code, language=sample.language, limits=sample.limits) as session:
        async for event in session:
            on_event(event, time.monotonic() - started)
            if isinstance(event, ev.Final):
                final = event.payload
    worker = await asyncio.to_thread(worker_of, f"{client.url}/sessions/{session.session_id}")
    return final is not None and sample.ends_well(final), worker


def worker_of(url: str) -> str:
    """Ask the broker which worker ran a session."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own fleet's address
        return str(msgspec.json.decode(answer.read()).get("worker", "unknown"))


def heading(text: str) -> str:
    """Return a line across the screen."""
    return f"\n── {text} " + "─" * (WIDTH - len(text) - 4)


async def one_by_one(client: AsyncClient) -> int:
    """Run every sample with all its events on the screen; return how many did not end as they should."""
    failures = 0
    for sample in SAMPLES:
        print(heading(f"{sample.name}: {sample.title}"))
        for line in sample.code.splitlines():
            print(f"  │ {line}")
        print()
        good, worker = await run(client, sample, show)
        failures += not good
        print(f"  ran on {worker}; " + ("ended as it should" if good else "DID NOT END AS IT SHOULD"))
    return failures


async def all_at_once(client: AsyncClient) -> int:
    """Run all samples at the same time and print who ran what; return how many did not end as they should."""
    print(heading("and now all of them at the same time"))
    outcomes = await asyncio.gather(*(run(client, sample, lambda _event, _s: None) for sample in SAMPLES))
    for sample, (good, worker) in zip(SAMPLES, outcomes, strict=True):
        verdict = "ended as it should" if good else "DID NOT END AS IT SHOULD"
        print(f"  {sample.name:<10} {worker:<10} {verdict}")
    return sum(not good for good, _ in outcomes)


async def demo() -> int:
    """Run the whole demo; return how many samples did not end as they should."""
    print("Starting a broker and two workers ...", flush=True)
    spec = FleetSpec(workers=2, port=0, tools=("demo_tools",))
    async with running_fleet(spec, lambda _name, _line: None) as fleet:
        for program in fleet.programs:
            level = f"  security level {program.level}" if program.level else ""
            print(f"  {program.name:<10} {program.url}{level}")
        async with AsyncClient(fleet.url) as client:
            failures = await one_by_one(client)
            failures += await all_at_once(client)
        print("\nStopping everything ...", flush=True)
    return failures


async def demo_or_signal() -> int:
    """Run the demo, for no longer than it may take; SIGTERM ends it like Ctrl-C, with everything stopped."""
    running = asyncio.current_task()
    if running is None:
        raise AssertionError("a coroutine that runs outside of a task")
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    async with asyncio.timeout(DEMO_TIMEOUT_S):
        return await demo()


def main() -> int:
    """Run the demo and say how it went; returns the exit code."""
    os.chdir(HERE)  # where the broker finds `demo_tools`
    os.environ["DEMO_KEY"] = "only the application knows"
    try:
        failures = asyncio.run(demo_or_signal())
    except (FleetError, EnclaveError, TimeoutError) as error:
        detail = getattr(error, "detail", "")
        print(f"{detail}\nenclave demo: {error or 'took too long'}".strip(), file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nstopped", file=sys.stderr)
        return 1
    print(f"{failures} of {2 * len(SAMPLES)} did not end as they should." if failures else "All ended as they should.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
