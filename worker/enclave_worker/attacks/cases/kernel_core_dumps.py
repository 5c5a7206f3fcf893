# attempts: have the kernel write a core file, or start the host's core helper, with our words in its arguments
# layer: no core dumps; undumpable
# category: kernel
# outcomes: OK
# evidence: segfault, abort, quit, limit, files
# host: unchanged
import resource
import signal

for name, number in (("segfault", signal.SIGSEGV), ("abort", signal.SIGABRT), ("quit", signal.SIGQUIT)):
    status = in_child(lambda: (signal.signal(number, signal.SIG_DFL), os.kill(os.getpid(), number)))
    (breach if os.WCOREDUMP(status) else held)(name, status)
try:
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30))
    breach("limit", resource.getrlimit(resource.RLIMIT_CORE))
except (ValueError, OSError) as error:
    held("limit", error)
found = [name for directory in ("/tmp", "/workspace", "/dev/shm") for name in os.listdir(directory) if "core" in name]
(breach if found else held)("files", found)
