# attempts: hand system calls to the kernel by a ring that no filter sees (io_uring), and by the old aio
# layer: system call filter
# category: kernel
# outcomes: OK
# evidence: setup, enter, register, without a ring, aio setup, aio submit
# host: unchanged
room = ctypes.create_string_buffer(256)
refused("setup", lambda: call("io_uring_setup", 8, room), *FILTERED)
refused("enter", lambda: call("io_uring_enter", 3, 1, 0, 0, 0, 0), *FILTERED)
refused("register", lambda: call("io_uring_register", 3, 0, room, 1), *FILTERED)
refused("without a ring", lambda: call("io_uring_register", -1, 17, room, 1), *FILTERED)
refused("aio setup", lambda: call("io_setup", 8, room), *FILTERED)
refused("aio submit", lambda: call("io_submit", 0, 1, room), *FILTERED)
