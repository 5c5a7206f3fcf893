# attempts: read, list and change the host's files by path, by .. and by /proc's links to roots
# layer: mount namespace, pivoted root
# category: files
# outcomes: OK
# evidence: direct, dotdot, own root, own cwd, first process's root, append, directory, openat2
# host: unchanged
import struct

ABSENT = ("ENOENT", "EACCES", "ENOTDIR")
ways = {
    "direct": "",
    "dotdot": "/.." * 40,
    "own root": "/proc/self/root",
    "own cwd": "/proc/self/cwd/../..",
    "first process's root": "/proc/1/root/proc/1/cwd/../..",
}
for name, way in ways.items():
    for path in HOST["secret_files"]:
        refused(name, lambda: print(open(way + path).read()), *ABSENT)
for path in HOST["secret_files"]:
    refused("append", lambda: open(path, "a").write("x"), *ABSENT)
for path in HOST["directories"]:
    refused("directory", lambda: os.listdir(path), *ABSENT)
# openat2 that may follow magic links, from the root's own descriptor
how = struct.pack("QQQ", os.O_RDONLY, 0, 0)
root = os.open("/", os.O_PATH)
path = ("../" * 20 + HOST["secret_files"][0]).encode()
refused("openat2", lambda: call("openat2", root, path, how, len(how)), *ABSENT)
