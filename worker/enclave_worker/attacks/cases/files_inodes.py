# attempts: use up inodes by files, directories, links, and a tree too deep to walk
# layer: inode-limited tmpfs
# category: files
# outcomes: OK
# evidence: files, symbolic links, deep tree, attributes
# host: unchanged
os.mkdir("/workspace/many")
stops(
    "files",
    lambda: os.close(os.open(f"/workspace/many/{time.monotonic_ns()}", os.O_CREAT | os.O_WRONLY)),
    20_000,
    "ENOSPC",
)
stops("symbolic links", lambda: os.symlink("x" * 4000, f"/tmp/{time.monotonic_ns()}"), 50_000, "ENOSPC")
file = os.open("/dev/shm/f", os.O_CREAT | os.O_WRONLY)
stops(
    "attributes",
    lambda: os.setxattr(file, f"user.{time.monotonic_ns()}", bytes(60_000)),
    20_000,
    "ENOSPC",
    "ENOTSUP",
    "EPERM",
)
os.chdir("/dev/shm")


def deeper():
    os.mkdir("d" * 200)
    os.chdir("d" * 200)


stops("deep tree", deeper, 20_000, "ENOSPC")
