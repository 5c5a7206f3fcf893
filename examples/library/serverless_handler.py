"""A serverless function that runs code it was sent: `handler(event, context)`, as AWS Lambda and its like call it.

The worker is started by an instance's first request and serves all that follow, so only that one pays for it
(some 100 ms). Each request's code has a fresh sandbox of its own. The platform has to allow namespaces: `enclave
doctor`, run inside the function, says whether it does.
"""

from __future__ import annotations

import atexit
import functools
import json
from typing import Any, Protocol

from enclave_protocol import RemoteProtocolError
from enclave_worker.api import ExecutionResult, RuntimeConfig, RuntimeWorker, create_runtime_worker

ANSWER_MARGIN_MS = 500
"""What is left of the platform's deadline for the answer, once the code was stopped."""


class Context(Protocol):
    """As much of the platform's context as the handler needs."""

    def get_remaining_time_in_millis(self) -> int:
        """Return how long the function may still run."""


def price(article: str) -> float:
    """Look up a price: what the code may ask for, with credentials that it never sees."""
    return {"apple": 0.5, "pear": 0.75}[article]


@functools.cache
def worker() -> RuntimeWorker:
    """Return this instance's worker; the first call starts it."""
    started = create_runtime_worker(RuntimeConfig(pool_size=1, max_sessions=4))
    started.start_sync()
    atexit.register(started.stop_sync)
    return started


def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    """Run `code` of the request's JSON body, and answer with its result or its error, and its output."""
    try:
        code = json.loads(event["body"])["code"]
        limits = {"deadlineMs": max(1, context.get_remaining_time_in_millis() - ANSWER_MARGIN_MS)}
        result = worker().execute_sync(None, code, limits, tools={"price": price})
    except (KeyError, TypeError, ValueError, RemoteProtocolError) as error:
        return _answer(400, {"error": {"code": "VALIDATION_ERROR", "message": f"{type(error).__name__}: {error}"}})
    return _answer(_status(result), _body(result))


def _status(result: ExecutionResult) -> int:
    if result.error is None:
        return 200
    return 503 if result.error.code == "NO_CAPACITY" else 422


def _body(result: ExecutionResult) -> dict[str, Any]:
    body: dict[str, Any] = {"stdout": result.stdout, "stderr": result.stderr, "durationMs": result.stats.duration_ms}
    if result.error is None:
        return {"result": result.result, **body}
    return {"error": {"code": result.error.code, "message": result.error.message}, **body}


def _answer(status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"statusCode": status, "headers": {"content-type": "application/json"}, "body": json.dumps(body)}
