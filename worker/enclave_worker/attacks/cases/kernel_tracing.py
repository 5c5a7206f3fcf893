# attempts: trace, read, write and take descriptors of other processes, our own driver and a child among them
# layer: system call filter; undumpable
# category: kernel
# outcomes: OK
# evidence: trace me, attach, seize, read memory, write memory, memory file, take descriptor, advise, compare
# host: unchanged
import signal
import struct

TRACEME, ATTACH, SEIZE = 0, 16, 0x4206
room = ctypes.create_string_buffer(64)
vector = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(room), 8))
in_child(lambda: refused("trace me", lambda: call("ptrace", TRACEME, 0, 0, 0), *FILTERED))
child = os.fork()
if child == 0:
    signal.pause()
    os._exit(0)
for pid in (child, 1, 2, HOST["victim_pid"]):
    for name, request in (("attach", ATTACH), ("seize", SEIZE)):
        refused(name, lambda: call("ptrace", request, pid, 0, 0), *FILTERED)
    refused("read memory", lambda: call("process_vm_readv", pid, vector, 1, vector, 1, 0), *FILTERED)
    refused("write memory", lambda: call("process_vm_writev", pid, vector, 1, vector, 1, 0), *FILTERED)
    refused("compare", lambda: call("kcmp", pid, 1, 0, 0, 1), *FILTERED)
refused("memory file", lambda: os.open(f"/proc/{child}/mem", os.O_RDONLY), "EACCES", "EPERM")
pidfd = os.pidfd_open(child)
refused("take descriptor", lambda: call("pidfd_getfd", pidfd, 3, 0), *FILTERED)
refused("advise", lambda: call("process_madvise", pidfd, vector, 1, 4, 0), *FILTERED)
refused("advise", lambda: call("process_mrelease", pidfd, 0), *FILTERED)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
