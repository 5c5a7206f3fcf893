# attempts: memory with powers: secret, spliced into files, remapped, at address zero, run without a file
# layer: system call filter
# category: kernel
# outcomes: OK
# evidence: secret memory, splice, page zero, run from memory
# host: unchanged
import mmap

refused("secret memory", lambda: call("memfd_secret", 0), *FILTERED)
reader, writer = os.pipe()
room = ctypes.create_string_buffer(64)
for name in ("splice", "vmsplice", "tee"):
    refused("splice", lambda: call(name, reader, room, 1, 0, 0, 0), *FILTERED)
MAP_FIXED = 0x10
refused(
    "page zero",
    lambda: call("mmap", 0, 4096, 3, MAP_FIXED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0),
    "EPERM",
    "EACCES",
)
refused("page zero", lambda: call("remap_file_pages", 4096, 4096, 0, 0, 0), *FILTERED)
EMPTY_PATH = 0x1000
refused("run from memory", lambda: call("execveat", reader, b"", 0, 0, EMPTY_PATH), "EACCES", "ENOEXEC")
