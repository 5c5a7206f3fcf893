# attempts: ask for large answers again and again, and never read one
# layer: bounded outbox
# category: control socket
# outcomes: GUEST_CRASHED MAX_TOOL_CALLS_EXCEEDED DEADLINE_EXCEEDED
# evidence: asked
# host: unchanged, others served
# limits: {"deadlineMs": 5000, "maxToolCalls": 1000}
held("asked")
for number in range(1, 200):
    frame = b'{"type":"tool_call","id":%d,"name":"big","args":{"size":4000000}}' % (number + 1000)
    os.write(3, len(frame).to_bytes(4, "big") + frame)
    time.sleep(0.002)
while True:
    pass
