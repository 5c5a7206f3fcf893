# What the sandbox is for: none of these must work.
import os
import socket


def attempt(action):
    try:
        return f"IT WORKED: {action()!r}"
    except OSError as error:
        return f"refused: {error.strerror or error}"


tried = {
    "read the host's passwords": attempt(lambda: open("/etc/shadow").read()),
    "list the host's homes": attempt(lambda: os.listdir("/home")),
    "replace the interpreter": attempt(lambda: open(os.path.realpath("/proc/self/exe"), "wb")),
    "reach the internet": attempt(lambda: socket.create_connection(("1.1.1.1", 443), timeout=3)),
    "reach the host's services": attempt(lambda: socket.create_connection(("127.0.0.1", 22), timeout=3)),
    "become root": attempt(lambda: os.setuid(0)),
    "mount a disk": attempt(lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0))),
}
for what, outcome in tried.items():
    print(f"{what}: {outcome}")
others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
return {
    "refused": all(outcome.startswith("refused") for outcome in tried.values()),
    "other processes": others,
    "keys in the environment": [name for name in os.environ if "KEY" in name],
}
