# attempts: find the worker's environment: variables, the block on the stack, the command line, auxiliary values
# layer: a zygote with nothing of the worker's environment
# category: information
# outcomes: OK
# evidence: variables, block, stack, command line, libc
# host: unchanged
(breach if os.environ else held)("variables", dict(os.environ))
block = own_text("/proc/self/environ").strip("\0")
(breach if block else held)("block", block)
line = next((line for line in own_text("/proc/self/maps").splitlines() if line.endswith("[stack]")), "")
words = []
if line:
    low, high = (int(part, 16) for part in line.split()[0].split("-"))
    found = ctypes.string_at(low, high - low)
    words = [
        name for name in (b"ENCLAVE_", b"LD_LIBRARY_PATH=", b"HOME=/", b"SSH_", b"AWS_", b"TOKEN=") if name in found
    ]
(breach if words else held)("stack", words)
arguments = own_text("/proc/self/cmdline")
(breach if "canary" in arguments or "--" in arguments else held)("command line", arguments)
_libc.getenv.restype = ctypes.c_char_p
values = [_libc.getenv(name) for name in (b"ENCLAVE_CANARY", b"HOME", b"PATH", b"USER")]
(breach if any(values) else held)("libc", values)
