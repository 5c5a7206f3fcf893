# attempts: turn knobs of the shared socket that the other end might feel: owner, signals, buffers, urgent data, flags
# layer: each end has its own
# category: control socket
# outcomes: OK
# evidence: owner, asynchronous, buffers, urgent, non-blocking, answers
# host: unchanged
import fcntl
import socket

control = socket.socket(fileno=os.dup(3))
refused("owner", lambda: fcntl.fcntl(3, fcntl.F_SETOWN, HOST["worker_pid"]), "ESRCH")
fcntl.fcntl(3, fcntl.F_SETFL, fcntl.fcntl(3, fcntl.F_GETFL) | os.O_ASYNC)
held("asynchronous")
for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
    control.setsockopt(socket.SOL_SOCKET, option, 1)
held("buffers")
# A byte out of band must not shift the frames after it. Some kernels do not have it for unix sockets.
try:
    control.send(b"", socket.MSG_OOB)
except OSError:
    pass
held("urgent")
control.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
fcntl.fcntl(3, fcntl.F_SETFL, fcntl.fcntl(3, fcntl.F_GETFL) & ~os.O_ASYNC)
held("non-blocking")
answer = await call_tool("echo", {"a": 1})
(held if answer == {"a": 1} else breach)("answers", answer)
