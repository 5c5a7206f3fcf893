# attempts: use up descriptors of every kind
# layer: open file limit
# category: resources
# outcomes: OK
# evidence: files, duplicates, epoll, eventfd, timerfd, sockets, pidfd, in children too
# host: unchanged, others served
import socket

MAKERS = {
    "files": lambda: os.open("/dev/null", os.O_RDONLY),
    "duplicates": lambda: os.dup(0),
    "epoll": lambda: call("epoll_create1", 0),
    "eventfd": lambda: call("eventfd2", 0, 0),
    "timerfd": lambda: call("timerfd_create", 1, 0),
    "sockets": lambda: socket.socket().detach(),
    "pidfd": lambda: os.pidfd_open(1),
}
for name, make in MAKERS.items():
    for fd in stops(name, make, 5000, "EMFILE"):
        os.close(fd)
refused("duplicates", lambda: os.dup2(0, 5000), "EBADF")
in_child(lambda: stops("in children too", MAKERS["files"], 5000, "EMFILE"))
