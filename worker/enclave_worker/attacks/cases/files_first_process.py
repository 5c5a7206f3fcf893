# attempts: from a child, read what the first process (our driver) keeps in /proc
# layer: undumpable
# category: files
# outcomes: OK
# evidence: environ, mem, maps, root, exe, map_files, syscall, stack, auxv
# host: unchanged
OPENED = {"environ": "rb", "mem": "rb", "maps": "rb", "syscall": "rb", "stack": "rb", "auxv": "rb"}


def look():
    for name, mode in OPENED.items():
        refused(name, lambda: open(f"/proc/1/{name}", mode, buffering=0).read(1), "EACCES", "EPERM", "ENOENT")
    for name in ("root", "exe"):
        refused(name, lambda: os.readlink(f"/proc/1/{name}"), "EACCES", "EPERM")
    refused("map_files", lambda: os.listdir("/proc/1/map_files"), "EACCES", "EPERM", "ENOENT")


in_child(look)
