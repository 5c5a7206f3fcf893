# attempts: make or enter namespaces by unshare, clone, clone3 and setns, through files and pidfds
# layer: system call filter; no nested user namespaces
# category: kernel
# outcomes: OK
# evidence: unshare, clone, clone3, setns by file, setns by pidfd, high bits, count
# host: unchanged
import struct

FLAGS = {"time": 0x80, "mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000}
FLAGS |= {"user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
for flag in (*FLAGS.values(), 0x10020000):
    refused("unshare", lambda: call("unshare", flag), *FILTERED)
    refused("clone", lambda: call("clone", flag | 17, 0, 0, 0, 0), *FILTERED)
    request = ctypes.create_string_buffer(struct.pack("Q", flag) + bytes(24) + struct.pack("Q", 17) + bytes(40))
    refused("clone3", lambda: call("clone3", request, 64), "ENOSYS")
    # The kernel reads an unsigned long: the filter must look at the half that counts.
    refused("high bits", lambda: call("clone", (1 << 40) | flag | 17, 0, 0, 0, 0), *FILTERED)
for name, flag in FLAGS.items():
    try:
        fd = os.open(f"/proc/self/ns/{name}", os.O_RDONLY)
    except OSError:
        continue
    refused("setns by file", lambda: call("setns", fd, flag), *FILTERED)
pidfd = os.pidfd_open(1)
refused("setns by pidfd", lambda: call("setns", pidfd, FLAGS["mnt"]), *FILTERED)
refused("count", lambda: open("/proc/sys/user/max_user_namespaces", "w").write("9"))
