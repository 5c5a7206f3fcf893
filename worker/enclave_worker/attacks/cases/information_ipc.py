# attempts: reach the host's System V and POSIX ipc objects by key, number and name
# layer: ipc namespace; system call filter
# category: information
# outcomes: OK
# evidence: shared memory, message queue, by number, lists, posix
# host: unchanged
for flags in (0, 0o4000):
    refused("shared memory", lambda: call("shmget", HOST["ipc_key"], 0, flags))
    refused("message queue", lambda: call("msgget", HOST["ipc_key"], flags))
room = ctypes.create_string_buffer(4096)
for number in (*range(8), 32768, 65536, 98304):
    refused("by number", lambda: call("shmat", number, 0, 0o10000), "EINVAL", "EIDRM", "EPERM")
    refused("by number", lambda: call("msgrcv", number, room, 4000, 0, 0o4000), "EINVAL", "EIDRM", "EPERM", "ENOSYS")
for path in ("/proc/sysvipc/shm", "/proc/sysvipc/msg", "/dev/mqueue"):
    refused("lists", lambda: os.listdir(path) if path.startswith("/dev") else open(path).read(), "ENOENT")
names = os.listdir("/dev/shm")
(breach if names else held)("posix", names)
