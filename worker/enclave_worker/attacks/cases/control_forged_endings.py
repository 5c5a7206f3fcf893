# attempts: claim endings and numbers that only the worker may give: our failures, usage, other sessions' events
# layer: frames checked and bounded
# category: control socket
# outcomes: EXECUTION_ERROR
# evidence: forged
# host: unchanged
import json


def send(message):
    body = json.dumps(message).encode()
    os.write(3, len(body).to_bytes(4, "big") + body)


held("forged")
send(
    {
        "type": "error",
        "code": "INTERNAL_ERROR",
        "message": "m",
        "name": None,
        "line": None,
        "stack": None,
        "stats": {"cpuMs": 0},
    }
)
send({"type": "result", "value": "twice", "sessionId": "s_00000000-0000-0000-0000-000000000000"})
time.sleep(1000)
