# attempts: climb from our namespaces to their owners and parents, by the ioctls of namespace files and pidfds
# layer: user and pid namespaces
# category: kernel
# outcomes: OK
# evidence: owner, parent, owner's user, mounts, peer's information, own pidfd
# host: unchanged
import socket
import struct

NS_GET_USERNS, NS_GET_PARENT, NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB704
room = ctypes.create_string_buffer(256)
for name in ("mnt", "net", "ipc", "uts", "cgroup", "pid"):
    try:
        fd = os.open(f"/proc/self/ns/{name}", os.O_RDONLY)
    except OSError as error:
        held("owner", errno.errorcode[error.errno])
        continue
    # They belong to the zygote's user namespace, which we are not to hold.
    refused("owner", lambda: call("ioctl", fd, NS_GET_USERNS), "EPERM")
user = os.open("/proc/self/ns/user", os.O_RDONLY)
refused("parent", lambda: call("ioctl", user, NS_GET_PARENT), "EPERM")
refused("parent", lambda: call("ioctl", os.open("/proc/self/ns/pid", os.O_RDONLY), NS_GET_PARENT), "EPERM")
owner = ctypes.c_uint()
call("ioctl", user, NS_GET_OWNER_UID, ctypes.byref(owner))
(breach if owner.value == 0 else held)("owner's user", owner.value)
NS_MNT_GET_NEXT, NS_MNT_GET_PREV = (2 << 30) | (16 << 16) | 0xB70B, (2 << 30) | (16 << 16) | 0xB70C
mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY)
for code in (NS_MNT_GET_NEXT, NS_MNT_GET_PREV):
    refused("mounts", lambda: call("ioctl", mounts, code, room), "EPERM", "ENOENT", "EINVAL", "ENOTTY")
SO_PEERPIDFD, EVERYTHING = 77, 0xFF
try:
    peer = socket.socket(fileno=os.dup(3)).getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
except OSError:
    peer = os.open("/dev/null", os.O_RDONLY)  # an older kernel has none
for size in (64, 72, 80, 88):
    request = (3 << 30) | (size << 16) | 0xFF0B
    struct.pack_into("Q", room, 0, EVERYTHING)
    refused(
        "peer's information",
        lambda: call("ioctl", peer, request, room),
        "EREMOTE",
        "ESRCH",
        "ENOTTY",
        "EINVAL",
        "EPERM",
    )
for code in range(0xFF01, 0xFF0B):
    refused(
        "own pidfd", lambda: call("setns", call("ioctl", os.pidfd_open(1), code, 0), 0), *FILTERED, "EACCES", "ENOTTY"
    )
