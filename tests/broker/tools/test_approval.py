"""The approval hook: whatever is not a clear yes is a no."""

from __future__ import annotations

from typing import Any

import pytest

from enclave_broker import ApprovalRequest, Refusal, ToolFailure, create_broker, tool
from enclave_broker.tools.approval import load_hook, require_approval

REQUEST = ApprovalRequest(tool="pay", args={"amount": 5}, session_id="s_1", call_id="c_1")


async def answers(answer: Any) -> None:
    async def hook(_request: ApprovalRequest) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    await require_approval(hook, REQUEST)


async def test_true_approves() -> None:
    await answers(True)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (False, "pay was not approved: the approval hook said no"),
        (Refusal("over the budget"), "pay was not approved: over the budget"),
        (None, "said no"),
        ("yes", "said no"),
        (1, "said no"),
        (ValueError("broken"), "the approval hook failed"),
    ],
)
async def test_anything_else_refuses(answer: Any, message: str) -> None:
    with pytest.raises(ToolFailure, match=message) as refused:
        await answers(answer)
    assert refused.value.code == "APPROVAL_REFUSED"
    assert "broken" not in refused.value.message


async def test_without_a_hook_nothing_is_approved() -> None:
    with pytest.raises(ToolFailure, match="no approval hook"):
        await require_approval(None, REQUEST)


def test_a_broker_whose_tools_need_approval_does_not_start_without_a_hook() -> None:
    @tool(needs_approval=True)
    def pay() -> None: ...

    with pytest.raises(ValueError, match="'pay' needs approval"):
        create_broker(tools=[pay])


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("module", "is written module:function"),
        ("no.such.module:hook", "no.such.module"),
        ("json:hook", "has no attribute 'hook'"),
        ("json:dumps", "is no async function"),
    ],
)
def test_a_hook_that_is_none_is_an_error(where: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_hook(where)


def test_a_hook_is_found_by_its_name() -> None:
    found: object = load_hook("enclave_broker.tools.approval:require_approval")
    assert found is require_approval
