# attempts: overwrite the shared interpreter through /proc/self/exe, map_files and writable mappings (CVE-2019-5736)
# layer: read-only mounts
# category: files
# outcomes: OK
# evidence: exe, map_files, mapping, library, memory of the mapping
# host: unchanged
import mmap

maps = [line.split() for line in own_text("/proc/self/maps").splitlines()]
files = sorted({parts[5] for parts in maps if len(parts) > 5 and parts[5].startswith("/")})
refused("exe", lambda: os.open("/proc/self/exe", os.O_WRONLY), "EROFS", "ETXTBSY", "EACCES")


def through_map_files():
    for name in os.listdir("/proc/self/map_files"):
        os.open(f"/proc/self/map_files/{name}", os.O_RDWR)


refused("map_files", through_map_files, "EPERM", "EROFS", "EACCES", "ETXTBSY", "ENOENT")
for path in files:
    refused("library", lambda: os.open(path, os.O_RDWR), "EROFS", "ETXTBSY", "EACCES")


def shared_writable():
    fd = os.open(files[0], os.O_RDONLY)
    mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


refused("mapping", shared_writable, "EACCES", "EPERM")


def write_read_only_memory():
    # Our own memory, by the file that ignores protections: it may copy the page, never the file below it.
    line = next(parts for parts in maps if len(parts) > 5 and parts[5] == files[0] and parts[1].startswith("r-"))
    start, offset = int(line[0].split("-")[0], 16), int(line[2], 16)
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(b"enclave")
    with open(files[0], "rb") as file:
        file.seek(offset)
        if file.read(7) != b"enclave":
            raise OSError(errno.EROFS, "only our copy changed")


refused("memory of the mapping", write_read_only_memory)
