# attempts: undo what was done to this process: dumpability, securebits, new privileges, ASLR, parent's death signal
# layer: system call filter; securebits locked; no_new_privs
# category: kernel
# outcomes: OK
# evidence: dumpable, securebits, no_new_privs, memory map, death signal, personality, dispatch, merge, still set
# host: unchanged
GET_DUMPABLE, GET_SECUREBITS, GET_NO_NEW_PRIVS, GET_SECCOMP = 3, 27, 39, 21
refused("dumpable", lambda: call("prctl", 4, 1, 0, 0, 0), "EPERM")
for bits in (0, 0xFF, 1 << 4):
    refused("securebits", lambda: call("prctl", 28, bits, 0, 0, 0), "EPERM")
refused("no_new_privs", lambda: call("prctl", 38, 0, 0, 0, 0), "EINVAL", "EPERM")
refused("memory map", lambda: call("prctl", 35, 8, 0x1000, 0, 0), "EPERM")
refused("death signal", lambda: call("prctl", 1, 0, 0, 0, 0), "EPERM")
refused("personality", lambda: call("personality", 0x0040000), "EPERM")
refused("dispatch", lambda: call("prctl", 59, 1, 0, 0, 0), "EPERM")
refused("merge", lambda: call("prctl", 67, 1, 0, 0, 0), "EPERM")
now = [call("prctl", option, 0, 0, 0, 0) for option in (GET_DUMPABLE, GET_NO_NEW_PRIVS, GET_SECCOMP)]
bits = call("prctl", GET_SECUREBITS, 0, 0, 0, 0)
if now == [0, 1, 2] and bits & 0xEF == 0xEF:
    held("still set")
else:
    breach("still set", f"dumpable, no_new_privs, seccomp: {now}; securebits {bits:#x}")
