"""The machine, the table and the JSON."""

from __future__ import annotations

import os
import platform
import textwrap
from pathlib import Path
from typing import Any

import msgspec

from enclave_protocol import __version__

from .figures import Figure, Series  # noqa: TC001 - msgspec reads the annotations at run time

_WIDTH = 118


class Report(msgspec.Struct, kw_only=True):
    """One run, as `--json` writes it."""

    version: str = __version__
    machine: dict[str, Any]
    settings: dict[str, Any]
    figures: list[Figure]
    failures: list[str]
    """Sessions that did not end as they should, or other things that went wrong; the first few in words."""
    failed: int
    leaks: dict[str, int]
    """What was held more often after the sessions than before; empty if nothing was."""
    left_out: list[str] = []
    """What was not measured, and why, in words."""
    curves: list[Series] = []
    """Latency against load, of sessions and of what they are compared with."""

    @property
    def ok(self) -> bool:
        """Whether no session failed and nothing leaked."""
        return not self.failed and not self.leaks


def describe_machine() -> dict[str, Any]:
    """Say what everything was measured on."""
    load_1min, _, _ = os.getloadavg()
    return {
        "kernel": platform.release(),
        "cpu": _first_value(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memoryMb": int(_first_value(Path("/proc/meminfo"), "MemTotal").split()[0]) // 1024,
        "python": platform.python_version(),
        "root": os.geteuid() == 0,
        "loadBefore": round(load_1min, 2),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """Return the machine in one line."""
    user = "root" if machine["root"] else "an ordinary user"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memoryMb']} MB; Linux {machine['kernel']}; "
        f"Python {machine['python']}; as {user}; load {machine['loadBefore']:g} before"
    )


def line(figure: Figure) -> str:
    """Return a figure as a line of the table, with what it is compared with below."""
    verdict = {True: "met", False: "MISSED", None: ""}[figure.met]
    value = (
        f"{figure.value:,.0f}" if figure.value >= 100 or figure.value == int(figure.value) else f"{figure.value:.2f}"
    )
    first = f"{figure.title:45} {value:>9} {figure.unit:11} {figure.target:29} {verdict}".rstrip()
    return "\n".join(
        [first, *textwrap.wrap(figure.compared_with, _WIDTH, initial_indent="    ", subsequent_indent="    ")]
    )


def ending(report: Report) -> str:
    """Return the last lines: what failed and what leaked."""
    lines = [f"failed: {report.failed}", *(f"  {failure}" for failure in report.failures)]
    lines += [f"left out: {each}" for each in report.left_out]
    leaks = ", ".join(f"{name} +{count}" for name, count in report.leaks.items())
    return "\n".join([*lines, f"leaked: {leaks or 'nothing'}"])


def _first_value(path: Path, name: str) -> str:
    for entry in path.read_text().splitlines():
        key, _, value = entry.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
