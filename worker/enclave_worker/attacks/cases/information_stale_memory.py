# attempts: find an earlier session's bytes in memory, files and pipes that the kernel hands out anew
# layer: the kernel's clearing of pages
# category: information
# outcomes: OK
# evidence: anonymous memory, files, heap, pipes
# host: unchanged
import mmap

mark = b"stale-" + b"page!" * 2
memory = mmap.mmap(-1, 96 << 20)
for at in range(0, 96 << 20, 4096):
    memory[at : at + len(mark)] = mark
with open("/tmp/f", "wb") as file:
    file.write(mark * 3_000_000)
# %% session
import mmap

mark = b"stale-" + b"page!" * 2
memory = mmap.mmap(-1, 128 << 20)
(breach if memory.find(mark) >= 0 else held)("anonymous memory")
fd = os.open("/tmp/f", os.O_CREAT | os.O_RDWR)
os.ftruncate(fd, 48 << 20)
(breach if mark in os.pread(fd, 48 << 20, 0) else held)("files")
_libc.malloc.restype = ctypes.c_void_p
address = _libc.malloc(ctypes.c_size_t(64 << 20))
(breach if mark in ctypes.string_at(address, 64 << 20) else held)("heap")
reader, writer = os.pipe()
os.write(writer, b"x")
(breach if mark in os.read(reader, 4096) else held)("pipes")
