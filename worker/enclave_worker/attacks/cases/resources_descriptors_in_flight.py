# attempts: hide descriptors in sockets that pass them on, sockets in sockets, until the kernel has none to give
# layer: open file limit; the kernel's count of descriptors in flight
# category: resources
# outcomes: OK
# evidence: in flight, in a ring
# needs: own host user
# host: unchanged, others served
# Where all sandboxes run as the worker's user, the kernel has one count for them all.
import socket

pairs = [socket.socketpair() for _ in range(20)]
for pair in pairs:
    pair[0].setblocking(False)
sent = []


def send():
    socket.send_fds(pairs[len(sent) % 20][0], [b"x"], [0] * 100)
    sent.append(1)


stops("in flight", send, 5000, "ETOOMANYREFS", "EAGAIN")


def ring():
    # A socket sent through itself, and closed: only the kernel's garbage collector knows of it.
    a, b = socket.socketpair()
    socket.send_fds(a, [b"x"], [a.fileno(), b.fileno()])


try:
    for _ in range(300):
        ring()
except OSError as error:
    held("in a ring", errno.errorcode[error.errno])
else:
    held("in a ring", "collected")
time.sleep(0.5)
