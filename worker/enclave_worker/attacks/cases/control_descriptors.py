# attempts: make the worker hold descriptors of ours: over a hundred passed along with frames, none of them asked for
# layer: a worker that takes no descriptors from guests
# category: control socket
# outcomes: OK
# evidence: passed
# host: unchanged, others served
import socket

control = socket.socket(fileno=os.dup(3))
whole = b'{"type":"tool_call","id":1000,"name":"echo","args":{}}'
sent, total = len(whole).to_bytes(4, "big") + whole, 0
reader, writer = os.pipe()
for at in range(len(sent)):
    try:
        socket.send_fds(control, [sent[at : at + 1]], [reader] * 2)
        total += 2
    except OSError as error:  # more than may be in flight at once
        control.send(sent[at : at + 1])
held("passed", f"{total} descriptors")
os.close(reader)
return total
