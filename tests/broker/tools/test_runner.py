"""One call: what a tool gives back, and what it does wrong."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from enclave_broker import ToolContext, ToolFailure
from tests.broker.tools.calling import call, new_call, outcome, running

if TYPE_CHECKING:
    from enclave_broker import ApprovalRequest


async def test_a_type_error_inside_a_tool_is_not_taken_for_wrong_arguments() -> None:
    assert (await call(lambda: 1 + "1"))[0] == "EXECUTION_ERROR"  # type: ignore[operator]


async def test_an_exception_reaches_the_guest_with_its_type() -> None:
    def fails() -> None:
        raise ValueError("no such city")

    assert await call(fails) == ("EXECUTION_ERROR", "ValueError: no such city")


class Unprintable(Exception):  # noqa: N818 - what it is, not what went wrong
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    "error", [StopIteration(1), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Unprintable()]
)
async def test_no_exception_of_a_tools_in_a_thread_harms_the_broker(error: BaseException) -> None:
    def fails() -> None:
        raise error

    assert (await call(fails))[0] == "EXECUTION_ERROR"


async def test_an_async_tool_that_exits_or_lets_a_cancellation_escape_harms_nobody() -> None:
    async def leaves() -> None:
        raise SystemExit(1)

    async def cancels() -> None:
        raise asyncio.CancelledError

    assert (await call(leaves))[0] == "EXECUTION_ERROR"
    assert (await call(cancels))[0] == "EXECUTION_ERROR"


async def test_an_error_keeps_its_own_code() -> None:
    class QuotaError(Exception):
        code = "QUOTA"

    def fails() -> None:
        raise QuotaError("too much")

    assert await call(fails) == ("QUOTA", "QuotaError: too much")


async def test_a_result_that_is_not_json_is_told_so() -> None:
    assert (await call(object))[0] == "RESULT_NOT_SERIALIZABLE"


async def test_a_result_over_the_limit_is_told_both_sizes() -> None:
    code, message = await call(lambda: "x" * 2000)
    assert code == "RESULT_TOO_LARGE"
    assert "2002" in message
    assert "1000" in message


async def test_a_failure_of_a_tools_own_keeps_its_code_and_words() -> None:
    async def fails() -> None:
        raise ToolFailure("NOT_FOUND", "no such city")

    assert await call(fails) == ("NOT_FOUND", "no such city")


async def test_an_error_that_is_no_unicode_can_still_be_told() -> None:
    def fails() -> None:
        raise ValueError("file \udcff")

    assert await call(fails) == ("EXECUTION_ERROR", "ValueError: file ?")


async def test_a_tools_own_limit_holds_beside_the_sessions() -> None:
    code, message = await call(lambda: "x" * 500, max_result_bytes=100)
    assert code == "RESULT_TOO_LARGE"
    assert "own limit is 100" in message


@pytest.fixture
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclave_broker.tools.retries.FIRST_DELAY_MS", 0.01)


class Flaky:
    """Fails so many times, then answers how often it was asked."""

    def __init__(self, failures: int, *, retryable: bool = True) -> None:
        self.asked = 0
        self._failures = failures
        self._retryable = retryable

    async def __call__(self) -> int:
        self.asked += 1
        if self.asked <= self._failures:
            raise ToolFailure("BUSY", "try again", retryable=self._retryable)
        return self.asked


@pytest.mark.usefixtures("_no_delay")
async def test_a_failure_that_a_retry_can_help_is_retried_for_a_tool_that_may_be() -> None:
    assert await call(Flaky(2), retryable=True) == 3
    assert await call(Flaky(9), retryable=True, max_retries=2) == ("BUSY", "try again")
    for once in (Flaky(9, retryable=False), Flaky(9)):
        may = once.asked == 0 and not once._retryable
        assert await call(once, retryable=may) == ("BUSY", "try again")
        assert once.asked == 1


async def test_no_attempt_is_made_that_can_only_begin_too_late() -> None:
    flaky = Flaky(9)
    with running() as runner:
        result = await runner.run(new_call(flaky, time_s=0.001, retryable=True))
    assert outcome(result) == ("BUSY", "try again")
    assert flaky.asked == 1


KEY = "s3cr3t-k3y"


async def test_a_tool_is_given_the_secrets_it_names_and_no_others() -> None:
    async def seen(context: ToolContext) -> list[str]:
        return sorted(context.secrets)

    with running(secrets={"ONE": KEY, "TWO": "another-one"}) as runner:
        assert outcome(await runner.run(new_call(seen, secrets=("ONE",)))) == ["ONE"]
        assert outcome(await runner.run(new_call(seen))) == []


async def test_a_secret_that_is_missing_is_named_and_the_tool_is_not_run() -> None:
    ran = []
    code, message = await call(lambda: ran.append(1), secrets=("NO_SUCH",))
    assert code == "SECRET_ERROR"
    assert "'NO_SUCH'" in message
    assert not ran


async def test_no_secret_leaves_by_a_result_an_error_or_a_code() -> None:
    class OwnError(Exception):
        code = KEY

    async def echoes(context: ToolContext) -> dict[str, Any]:
        return {context.secrets["KEY"]: [f"Bearer {context.secrets['KEY']}"]}

    def raises(context: ToolContext) -> None:
        raise OwnError("x" * 9_985 + context.secrets["KEY"])  # the end of what is passed on falls into it

    with running(secrets={"KEY": KEY}) as runner:
        assert outcome(await runner.run(new_call(echoes, secrets=("KEY",)))) == {
            "[secret:KEY]": ["Bearer [secret:KEY]"]
        }
        code, message = outcome(await runner.run(new_call(raises, secrets=("KEY",))))
        assert code == "[secret:KEY]"
        assert message.endswith("x[secr")


async def test_a_tools_traceback_is_logged_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    def raises() -> None:
        raise ValueError(KEY)

    with caplog.at_level(logging.DEBUG, "enclave.broker"), running(secrets={"KEY": KEY}) as runner:
        await runner.run(new_call(raises))
    assert "in raises" in caplog.text
    assert "ValueError: [secret:KEY]" in caplog.text
    assert KEY not in caplog.text


async def test_a_stored_result_is_a_reference_that_other_tools_get_the_value_of() -> None:
    def rows() -> list[int]:
        return list(range(100))

    def total(rows: list[int]) -> int:
        rows.append(0)  # its own copy
        return sum(rows)

    with running() as runner:
        reference = outcome(await runner.run(new_call(rows, max_bytes=10, store_result=True)))
        assert reference.keys() == {"$ref"}
        assert reference["$ref"]["id"].startswith("ref_")
        for _ in range(2):
            assert outcome(await runner.run(new_call(total, {"rows": reference}))) == 4950


async def test_a_stored_value_is_checked_like_any_argument() -> None:
    with running() as runner:
        reference = outcome(await runner.run(new_call(lambda: "text", store_result=True)))

        def takes(n: int) -> int:
            return n

        code, message = outcome(await runner.run(new_call(takes, {"n": reference})))
    assert code == "VALIDATION_ERROR"
    assert "n: Expected `int`, got `str`" in message


async def test_a_reference_of_nobodys_is_refused() -> None:
    code, message = await call(lambda value: value, {"value": [{"$ref": {"id": "ref_1"}}]})
    assert code == "VALIDATION_ERROR"
    assert "value.0: this session has no stored result 'ref_1'" in message


async def test_a_result_is_not_stored_for_a_session_that_has_ended() -> None:
    with running() as runner:
        late = new_call(lambda: 1, store_result=True)
        late.over = True
        await runner.run(late)
        assert runner.stored.used_bytes == 0


async def test_a_call_waits_for_approval_and_runs_with_it() -> None:
    asked: asyncio.Queue[ApprovalRequest] = asyncio.Queue()
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    ran = asyncio.Event()

    async def approve(request: ApprovalRequest) -> bool:
        asked.put_nowait(request)
        return await answer

    async def pays(amount: int) -> int:
        ran.set()
        return amount

    with running(approve=approve) as runner:
        waiting = asyncio.create_task(runner.run(new_call(pays, {"amount": 5}, needs_approval=True)))
        request = await asked.get()
        assert (request.tool, request.args, request.session_id) == ("t", {"amount": 5}, "s_1")
        assert not ran.is_set()
        answer.set_result(True)
        assert outcome(await waiting) == 5


async def test_arguments_that_do_not_fit_are_refused_before_anybody_is_asked() -> None:
    async def approve(request: ApprovalRequest) -> bool:
        raise AssertionError(f"asked about {request}")

    with running(approve=approve) as runner:
        result = await runner.run(new_call(lambda n: n, {"m": 1}, needs_approval=True))
    assert outcome(result)[0] == "VALIDATION_ERROR"


async def test_what_is_large_is_checked_and_cleaned_beside_the_loop() -> None:
    value = ["x" * 100_000, KEY]
    with running(secrets={"KEY": KEY}) as runner:
        large = new_call(lambda value: value, {"value": value}, max_bytes=1_000_000)
        large.size_bytes = len(json.dumps(value))
        assert outcome(await runner.run(large)) == ["x" * 100_000, "[secret:KEY]"]
        assert runner._own_threads._count > 0
