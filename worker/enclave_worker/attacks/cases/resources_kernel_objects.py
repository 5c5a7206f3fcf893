# attempts: pile up small objects of the kernel: timers, queued signals, POSIX queues, mappings, locks
# layer: resource limits
# category: resources
# outcomes: OK
# evidence: timers, queued signals, message queues, mappings
# host: unchanged, others served
import mmap
import signal
import struct

timer = ctypes.c_int()
stops("timers", lambda: call("timer_create", 1, 0, ctypes.byref(timer)), 50_000, "EAGAIN")
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
information = ctypes.create_string_buffer(struct.pack("iii", 40, 0, -1) + bytes(116))
stops("queued signals", lambda: call("rt_sigqueueinfo", os.getpid(), 40, information), 50_000, "EAGAIN")
attributes = ctypes.create_string_buffer(struct.pack("qqqq", 0, 10, 8192, 0) + bytes(32))
CREATE = 0o102
stops(
    "message queues",
    lambda: call("mq_open", f"q{time.monotonic_ns()}".encode(), CREATE, 0o600, attributes),
    5000,
    "EMFILE",
    "ENOSPC",
    "ENOSYS",
    "EINVAL",
)
pages = []


def mapping():
    # Every other page of another protection: none can be joined with its neighbour.
    pages.append(mmap.mmap(-1, 4096, prot=mmap.PROT_READ if len(pages) % 2 else mmap.PROT_READ | mmap.PROT_WRITE))


stops("mappings", mapping, 200_000, "ENOMEM")
