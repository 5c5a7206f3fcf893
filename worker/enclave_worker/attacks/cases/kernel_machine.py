# attempts: change the machine: modules, kernels, clocks, swap, power, accounting, ports, quotas, host name
# layer: system call filter; no capabilities
# category: kernel
# outcomes: OK
# evidence: modules, kexec, reboot, clocks, swap, accounting, ports, log, quotas, names, disks
# host: unchanged
room = ctypes.create_string_buffer(256)
# Every argument is such that the call would fail of itself: only the errno tells who refused it.
for name in ("init_module", "finit_module", "delete_module"):
    refused("modules", lambda: call(name, -1, 0, 0), *FILTERED)
for name in ("kexec_load", "kexec_file_load"):
    refused("kexec", lambda: call(name, -1, -1, 0, 0, 0), *FILTERED)
refused("reboot", lambda: call("reboot", 0, 0, 0, 0), *FILTERED)
refused("clocks", lambda: call("clock_settime", 99, room), *FILTERED)
refused("clocks", lambda: call("settimeofday", 1, 1), *FILTERED)
refused("clocks", lambda: call("adjtimex", 1), *FILTERED)
refused("clocks", lambda: call("clock_adjtime", 99, room), *FILTERED)
refused("swap", lambda: call("swapon", b"/nowhere", 0), *FILTERED)
refused("swap", lambda: call("swapoff", b"/nowhere"), *FILTERED)
refused("accounting", lambda: call("acct", b"/nowhere"), *FILTERED)
refused("ports", lambda: call("iopl", 3), *FILTERED)
refused("ports", lambda: call("ioperm", 0x80, 1, 1), *FILTERED)
refused("log", lambda: call("syslog", 10, 0, 0), *FILTERED)
refused("quotas", lambda: call("quotactl", 0, 0, 0, 0), *FILTERED)
for name in ("sync", "syncfs"):
    refused("disks", lambda: call(name, 0), *FILTERED)
refused("names", lambda: call("sethostname", b"x", 1000), *FILTERED)
refused("names", lambda: call("setdomainname", b"x", 1000), *FILTERED)
