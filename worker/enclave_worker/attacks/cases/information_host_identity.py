# attempts: learn which host this is: names, ids, mounts, cgroups, namespaces, uptime files, installed packages
# layer: uts, mount, cgroup namespaces; pivoted root
# category: information
# outcomes: OK
# evidence: host name, ids, mounts, cgroup, namespaces, packages, users
# host: unchanged
import socket

names = {
    os.uname().nodename,
    socket.gethostname(),
    own_text("/proc/sys/kernel/hostname").strip(),
    own_text("/etc/hostname").strip(),
}
(breach if HOST["host_name"] in names else held)("host name", names)
for path in (
    "/etc/machine-id",
    "/proc/sys/kernel/random/boot_id",
    "/sys/class/dmi/id/product_uuid",
    "/var/lib/dbus/machine-id",
):
    refused("ids", lambda: open(path).read(), "ENOENT")
text = own_text("/proc/self/mountinfo")
parts = [path for path in (*HOST["directories"], "/home/", "/var/lib/", "docker/overlay2", "upperdir=") if path in text]
(breach if parts or not text else held)("mounts", parts)
groups = {line.split(":", 2)[2] for line in own_text("/proc/self/cgroup").splitlines()}
(held if groups <= {"/"} else breach)("cgroup", groups)
for name in ("mnt", "net", "ipc", "uts", "cgroup", "user", "pid"):
    same = os.readlink(f"/proc/self/ns/{name}") == HOST["namespaces"][name]
    (breach if same else held)("namespaces", name)
for name in ("msgspec", "uvloop", "websockets", "enclave_worker", "enclave_protocol", "pytest"):
    try:
        __import__(name)
    except ImportError:
        held("packages", name)
    else:
        breach("packages", name)
(held if own_text("/etc/passwd").count("\n") == 2 else breach)("users", own_text("/etc/passwd"))
# The directories above the interpreter are there, and nothing else in them.
parents = "/root", "/home", "/opt", "/srv", "/var"
for path in parents:
    try:
        names = [name for name in os.listdir(path) if not sys.base_prefix.startswith(f"{path}/{name}")]
    except OSError:
        names = []
    (breach if names else held)("users", names)
for path in ("/root/.ssh", "/boot", "/run", "/sys", "/mnt"):
    refused("users", lambda: os.listdir(path), "ENOENT", "EACCES")
