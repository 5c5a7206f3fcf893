# attempts: mount, bind, move, remount and unmount by the old calls
# layer: system call filter; no capabilities
# category: kernel
# outcomes: OK
# evidence: tmpfs, proc, sysfs, cgroup, overlay, bind, remount, propagation, unmount, move
# host: unchanged
for kind in ("tmpfs", "proc", "sysfs", "overlay", "cgroup", "cgroup2", "mqueue", "bpf", "debugfs", "devpts", "ramfs"):
    name = kind.rstrip("2") if kind.rstrip("2") in ("tmpfs", "proc", "sysfs", "overlay", "cgroup") else "tmpfs"
    refused(name, lambda: call("mount", b"x", b"/tmp", kind.encode(), 0, b""), *FILTERED)
BIND, REMOUNT, MOVE, SHARED, REC = 4096, 32, 8192, 1 << 20, 16384
refused("bind", lambda: call("mount", b"/", b"/tmp", b"", BIND | REC, 0), *FILTERED)
for target in (b"/", b"/usr/bin", b"/proc", b"/dev/null"):
    refused("remount", lambda: call("mount", 0, target, 0, REMOUNT | BIND, 0), *FILTERED)
    refused("propagation", lambda: call("mount", 0, target, 0, SHARED | REC, 0), *FILTERED)
    refused("unmount", lambda: call("umount2", target, 2), *FILTERED)
refused("move", lambda: call("mount", b"/proc", b"/tmp", 0, MOVE, 0), *FILTERED)
