# attempts: memory that no process has mapped: anonymous files, System V segments, queues and semaphores
# layer: control groups, or the system call filter without one
# category: resources
# outcomes: OK MEMORY_LIMIT_EXCEEDED
# evidence: started
# host: unchanged, others served
PRIVATE_KEY, CREATE, PIECE, BOUND = 0, 0o1600, 16 << 20, 128
held("started", fd=2)


def anonymous_file():
    fd = call("memfd_create", b"x", 0)
    for _ in range(PIECE >> 20):
        os.write(fd, bytes(1 << 20))


def segment():
    number = call("shmget", PRIVATE_KEY, PIECE, CREATE)
    _libc.shmat.restype = ctypes.c_void_p
    address = _libc.shmat(number, None, 0)
    ctypes.memset(address, 1, PIECE)
    _libc.shmdt(ctypes.c_void_p(address))


message = ctypes.create_string_buffer(8 + 8000)
message[0] = 1


def queues():
    # 16 KiB each, and 32,000 of them by the kernel's defaults.
    for _ in range(PIECE >> 14):
        number = call("msgget", PRIVATE_KEY, CREATE)
        for _ in range(2):
            call("msgsnd", number, message, 8000, 0)


def semaphores():
    # 2 MiB each, and 32,000 of them.
    for _ in range(PIECE >> 21):
        call("semget", PRIVATE_KEY, 32_000, CREATE)


for name, make in {"file": anonymous_file, "segment": segment, "queue": queues, "semaphore": semaphores}.items():
    # In a child, so that each starts with what the others have left behind in the sandbox.
    in_child(lambda: stops(name, make, BOUND))
