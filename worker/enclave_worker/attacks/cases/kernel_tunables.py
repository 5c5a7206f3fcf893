# attempts: read and write the kernel's tunables and the process files that reach further than the process
# layer: /proc of processes only, read-only
# category: kernel
# outcomes: OK
# evidence: sysctls, triggers, kernel memory, symbols, own knobs, id maps, security attributes
# host: unchanged
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/proc/sys/fs"):
    refused("sysctls", lambda: os.open(path, os.O_RDONLY), "ENOENT")
for path in ("/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/sys/kernel/uevent_helper", "/sys/power/state"):
    refused("triggers", lambda: os.open(path, os.O_RDONLY), "ENOENT")
for path in ("/proc/kcore", "/proc/kmsg", "/proc/iomem", "/proc/kpageflags", "/proc/vmallocinfo", "/sys/kernel/debug"):
    refused("kernel memory", lambda: os.open(path, os.O_RDONLY), "ENOENT")
for path in ("/proc/kallsyms", "/proc/modules", "/sys/kernel/notes", "/boot", "/proc/config.gz"):
    refused("symbols", lambda: os.open(path, os.O_RDONLY), "ENOENT")
for name, text in {
    "oom_score_adj": "-1000",
    "coredump_filter": "0x3ff",
    "clear_refs": "1",
    "timens_offsets": "1 1 1",
}.items():
    refused("own knobs", lambda: open(f"/proc/self/{name}", "w").write(text), "EROFS", "EACCES", "EPERM", "ENOENT")
for name in ("uid_map", "gid_map", "projid_map", "setgroups"):
    refused("id maps", lambda: open(f"/proc/self/{name}", "w").write("0 0 1"), "EROFS", "EACCES", "EPERM")
for name in ("attr/current", "attr/exec", "loginuid", "attr/keycreate"):
    refused(
        "security attributes",
        lambda: open(f"/proc/self/{name}", "w").write("0"),
        "EROFS",
        "EACCES",
        "EPERM",
        "ENOENT",
        "EINVAL",
    )
