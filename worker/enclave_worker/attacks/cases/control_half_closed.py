# attempts: close one half of the control socket, then the other, then all of it, and go on
# layer: a worker that expects it
# category: control socket
# outcomes: GUEST_CRASHED DEADLINE_EXCEEDED
# evidence: half closed
# host: unchanged, others served
# limits: {"deadlineMs": 1500}
import socket

control = socket.socket(fileno=os.dup(3))
control.shutdown(socket.SHUT_RD)
held("half closed")
body = b'{"type":"tool_call","id":%d,"name":"big","args":{"size":100000}}'
for number in range(20):
    try:
        frame = body % (number + 1000)
        os.write(3, len(frame).to_bytes(4, "big") + frame)
    except OSError:
        break
try:
    control.shutdown(socket.SHUT_WR)
except OSError:
    pass
os.close(3)
control.close()
while True:
    pass
