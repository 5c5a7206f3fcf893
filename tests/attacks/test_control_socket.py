"""The guest's own socket to the worker, descriptor 3: what it carries is a claim, whoever wrote it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Attack, Target

FRAME = """
import json, struct
def frame(message, size=None):
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack('>I', len(body) if size is None else size) + body
def hold():
    import time
    time.sleep(1000)
"""

CRASHES = {
    "garbage": "os.write(3, b'\\xff' * 100)",
    "a length beyond all limits": "os.write(3, struct.pack('>I', 0xFFFFFFFF))",
    "a frame of no JSON": "os.write(3, frame(b'nonsense'))",
    "an empty frame": "os.write(3, frame(b''))",
    "an event": "os.write(3, frame({'type': 'final', 'ok': True, 'payload': {}}))",
    "a second ready": "os.write(3, frame({'type': 'ready'}))",
    "an endless nesting": 'os.write(3, frame(b\'{"type":"result","value":\' + b\'[\' * 100_000))',
    "a call of the wrong type": "os.write(3, frame({'type': 'tool_call', 'id': 'x', 'name': 5, 'args': None}))",
    "text that is not UTF-8": 'os.write(3, frame(b\'{"type":"result","value":"\\xff"}\'))',
    "two calls of one number": "os.write(3, frame({'type': 'tool_call', 'id': 1, 'name': 'x', 'args': 1}) * 2)",
}


@pytest.mark.parametrize("attempt", CRASHES.values(), ids=CRASHES)
def test_a_frame_the_driver_never_sends_ends_the_session_and_only_it(attack: Attack, attempt: str) -> None:
    outcome = attack(FRAME + attempt + "\nhold()")

    assert outcome.code == ("RESULT_NOT_SERIALIZABLE" if "100_000" in attempt else "GUEST_CRASHED")


def test_a_forged_result_is_the_guests_own_lie(attack: Attack) -> None:
    # It could have returned the same.
    outcome = attack(FRAME + "os.write(3, frame({'type': 'result', 'value': 'forged'}))\nhold()")

    assert outcome.result == "forged"


def test_nothing_after_a_forged_result_counts(attack: Attack) -> None:
    outcome = attack(
        FRAME + "os.write(3, frame({'type': 'result', 'value': 1}) + frame({'type': 'result', 'value': 2}))\n"
        "os.write(3, frame({'type': 'tool_call', 'id': 9, 'name': 'x', 'args': 1}))\nraise ValueError"
    )

    assert (outcome.result, outcome.final["stats"]["toolCallCount"]) == (1, 0)


def test_a_forged_error_cannot_claim_our_failures(attack: Attack) -> None:
    outcome = attack(
        FRAME + "os.write(3, frame({'type': 'error', 'code': 'WORKER_LOST', 'message': 'retry me'}))\nhold()"
    )

    assert (outcome.code, outcome.final["error"]["retryable"]) == ("EXECUTION_ERROR", False)


def test_half_a_frame_waits_for_the_deadline(attack: Attack) -> None:
    outcome = attack(FRAME + "os.write(3, frame(b'{', size=1000))\nhold()", deadlineMs=200)

    assert outcome.code == "DEADLINE_EXCEEDED"


def test_a_flood_of_calls_is_answered_within_bounds(attack: Attack) -> None:
    # Nobody reads the answers: at 16 MiB of them the session ends.
    outcome = attack(
        FRAME + "n = 0\nwhile True:\n    batch = b''\n    for _ in range(200):\n        n += 1\n"
        "        batch += frame({'type': 'tool_call', 'id': n, 'name': 'x', 'args': 1})\n"
        "    while batch: batch = batch[os.write(3, batch):]",
        maxToolCalls=1,
    )

    assert outcome.code == "GUEST_CRASHED"
    assert "does not read" in outcome.final["error"]["message"]


@pytest.mark.parametrize(
    "how",
    [
        "os.close(3)",
        "socket.socket(fileno=3).shutdown(socket.SHUT_WR)",
        "socket.socket(fileno=3).shutdown(socket.SHUT_RDWR)",
    ],
)
def test_closing_the_socket_ends_the_session_long_before_its_deadline(attack: Attack, how: str) -> None:
    outcome = attack(FRAME + f"print('closing')\n{how}\nhold()")

    assert outcome.code == "GUEST_CRASHED"
    assert outcome.stdout == "closing\n"


def test_a_guest_that_closed_its_socket_and_returns_has_crashed(attack: Attack) -> None:
    assert attack("os.close(3)\nreturn 1").code == "GUEST_CRASHED"


def test_descriptors_sent_along_never_reach_the_worker(attack: Attack, target: Target) -> None:
    before = target.at_rest()
    outcome = attack(
        FRAME
        + """
sock = socket.socket(fileno=os.dup(3))
fds = [os.open('/dev/null', os.O_RDONLY) for _ in range(200)]
for n in range(20):
    body = frame({'type': 'tool_call', 'id': n + 1, 'name': 'x', 'args': 1})
    try:
        socket.send_fds(sock, [body], fds)
    except OSError as error:  # the kernel bounds what is under way for one user
        return [n, errno.errorcode[error.errno]]
return [20, None]
""",
        maxToolCalls=1000,
    )

    sent, stopped = outcome.result
    assert sent >= 1
    assert stopped in {None, "ETOOMANYREFS"}
    assert target.at_rest() == before


def test_two_processes_that_write_the_socket_confuse_only_their_session(attack: Attack) -> None:
    outcome = attack(FRAME + "os.fork()\nfor n in range(10_000): os.write(3, b'\\x00\\x00\\x00')\nhold()")

    assert outcome.code == "GUEST_CRASHED"


def test_a_patched_driver_can_only_lie_about_its_own_session(attack: Attack) -> None:
    outcome = attack("""
import json, gc
json.dumps = lambda *a, **k: '"patched"'
json.JSONEncoder.encode = lambda *a: '{"type": "result", "value": "patched"}'
os._exit = lambda *a: None
sys.exit = lambda *a: None
return 1
""")

    assert outcome.code in {"OK", "GUEST_CRASHED", "EXECUTION_ERROR"}


def test_a_call_nested_as_deep_as_can_be_read_holds_no_slot_past_its_deadline(attack: Attack, target: Target) -> None:
    def call_nested(depth: int) -> str:
        call = f'b\'{{"type":"tool_call","id":1,"name":"x","args":\' + b\'[\' * {depth} + b\']\' * {depth} + b\'}}\''
        return attack(FRAME + f"os.write(3, frame({call}))\nhold()", deadlineMs=500).code

    with ThreadPoolExecutor(10) as threads:
        codes = set(threads.map(call_nested, range(850, 1000, 3)))

    assert codes <= {"DEADLINE_EXCEEDED", "RESULT_NOT_SERIALIZABLE"}
    assert target.metric("enclave_executions_active") == 0
