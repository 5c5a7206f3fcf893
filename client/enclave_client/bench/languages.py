"""What a session costs in another language, beside the same in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .figures import Figure, at_most, percentile, spread
from .load import SUM, create_body

if TYPE_CHECKING:
    from .load import Load
    from .phases import Plan

BLOCK_SESSIONS = 25
MAX_RATIO_TO_PYTHON = 1.3


async def javascript(load: Load, plan: Plan) -> list[Figure]:
    """Measure one session at a time, in blocks of Python and of JavaScript by turns."""
    bodies = {language: create_body(SUM, language=language) for language in ("python", "javascript")}
    took_ms: dict[str, list[float]] = {language: [] for language in bodies}
    async with load.connection() as connection:
        for _ in range(plan.rounds):
            for language, body in bodies.items():
                took_ms[language] += [await load.run(connection, body) for _ in range(BLOCK_SESSIONS)]
    python, own = (percentile(took_ms[language], 50) for language in ("python", "javascript"))
    return [
        at_most(
            "javascript_p50",
            "a session in JavaScript, p50",
            own,
            "ms",
            MAX_RATIO_TO_PYTHON * python,
            target=f"at most {MAX_RATIO_TO_PYTHON:g} times Python's = {MAX_RATIO_TO_PYTHON * python:.2f}",
            compared_with=f"the same in Python: {python:.2f}, so {own / python:.2f} times that",
            detail={
                "ratioToPython": round(own / python, 3),
                "javascript": spread(took_ms["javascript"]),
                "python": spread(took_ms["python"]),
            },
        )
    ]
