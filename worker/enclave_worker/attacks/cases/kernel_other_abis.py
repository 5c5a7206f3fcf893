# attempts: reach other calls under the same numbers: x32, 32-bit int 0x80, sysenter, vsyscall
# layer: system call filter: foreign conventions
# category: kernel
# outcomes: OK
# evidence: x32, x32 mount, int 0x80, int 0x80 clone, sysenter
# host: unchanged
# needs: x86_64
import mmap
import signal

X32 = 0x40000000


def bare(number, *arguments):
    ctypes.set_errno(0)
    result = _libc.syscall(*[ctypes.c_long(value) for value in (number, *arguments)])
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


refused("x32", lambda: bare(X32 | 39), "ENOSYS", "EPERM")
refused("x32 mount", lambda: bare(X32 | 165, 0, 0, 0, 0, 0), "ENOSYS", "EPERM")
refused("x32", lambda: bare((1 << 32) | X32 | 39), "ENOSYS", "EPERM")


def run(code):
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()


CODES = {
    # mov eax, N; int 0x80; ret
    "int 0x80": bytes.fromhex("b814000000cd80c3"),
    # push rbx; mov ebx, CLONE_NEWUSER; mov eax, 310 (unshare); int 0x80; pop rbx; ret
    "int 0x80 clone": bytes.fromhex("53bb00000010b836010000cd805bc3"),
    # mov eax, 20; sysenter
    "sysenter": bytes.fromhex("b8140000000f34c3"),
}
for name, code in CODES.items():
    status = in_child(lambda: run(code))
    if os.WIFSIGNALED(status):
        held(name, signal.Signals(os.WTERMSIG(status)).name)
    else:
        breach(name, f"came back: {status}")
