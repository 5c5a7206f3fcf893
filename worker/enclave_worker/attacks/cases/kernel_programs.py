# attempts: run programs of our own in the kernel: bpf, perf, filters of our own, user-mode page faults
# layer: system call filter
# category: kernel
# outcomes: OK
# evidence: bpf map, bpf program, perf, userfaultfd, seccomp, landlock list, modify_ldt, socket filter
# host: unchanged
import socket
import struct

room = ctypes.create_string_buffer(256)
refused(
    "bpf map",
    lambda: call("bpf", 0, ctypes.create_string_buffer(struct.pack("IIII", 2, 4, 4, 1) + bytes(112)), 128),
    *FILTERED,
)
refused("bpf program", lambda: call("bpf", 5, room, 128), *FILTERED)
attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 128, 0) + bytes(112))
refused("perf", lambda: call("perf_event_open", attributes, 0, -1, -1, 0), *FILTERED)
refused("userfaultfd", lambda: call("userfaultfd", 0), *FILTERED)
refused("userfaultfd", lambda: call("userfaultfd", 1), *FILTERED)
refused("seccomp", lambda: call("seccomp", 1, 0, room), *FILTERED)
refused("landlock list", lambda: call("lsm_list_modules", room, room, 0), *FILTERED)
refused("modify_ldt", lambda: call("modify_ldt", 1, room, 16), *FILTERED)
SO_ATTACH_BPF = 50
left, _ = socket.socketpair()
refused("socket filter", lambda: left.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, 0), "EINVAL", "EBADF", "EPERM")
