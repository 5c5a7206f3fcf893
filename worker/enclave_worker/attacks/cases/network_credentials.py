# attempts: pass for another process on a unix socket: forged credentials, and what the worker's socket tells of it
# layer: pid and user namespaces
# category: network
# outcomes: OK
# evidence: pid, uid, peer, signal by pidfd, namespaces by pidfd, descriptor by pidfd, wait by pidfd, named
# host: unchanged
import signal
import socket
import struct

left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
right.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def claim(pid, uid, gid):
    packed = struct.pack("iii", pid, uid, gid)
    left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, packed)])


for pid in (HOST["victim_pid"], HOST["worker_pid"], 2**22):
    refused("pid", lambda: claim(pid, os.getuid(), os.getgid()), "EPERM", "ESRCH")
for uid in (0, 1, 65534):
    refused("uid", lambda: claim(os.getpid(), uid, os.getgid()), "EPERM", "EINVAL")
control = socket.socket(fileno=os.dup(3))
pid, uid, gid = struct.unpack("iii", control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
# Somebody outside has no number in here.
(held if pid == 0 else breach)("peer", (pid, uid, gid))
SO_PEERPIDFD = 77
try:
    # The kernel gives us a descriptor of the zygote, which made the socket. Nothing may be done with it.
    outside = control.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
except OSError:
    outside = os.open("/dev/null", os.O_RDONLY)  # an older kernel has none
for number in (0, 10):
    refused("signal by pidfd", lambda: signal.pidfd_send_signal(outside, number), "EINVAL", "EPERM", "EBADF", "ESRCH")
PIDFD_GET_NAMESPACE = [0xFF00 | number for number in range(1, 12)]
for code in PIDFD_GET_NAMESPACE:
    refused("namespaces by pidfd", lambda: call("ioctl", outside, code, 0))
for flag in (0x20000, 0x10000000, 0x40000000):
    refused("namespaces by pidfd", lambda: call("setns", outside, flag), *FILTERED)
refused("descriptor by pidfd", lambda: call("pidfd_getfd", outside, 3, 0), *FILTERED)
refused("wait by pidfd", lambda: os.waitid(os.P_PIDFD, outside, os.WEXITED | os.WNOHANG), "ECHILD", "EINVAL", "EBADF")
line = [line for line in own_text(f"/proc/self/fdinfo/{outside}").splitlines() if line.startswith("Pid:")]
(held if not line or line[0].split()[1] in ("0", "-1") else breach)("named", line)
