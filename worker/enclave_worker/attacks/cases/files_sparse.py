# attempts: files of enormous length: sparse, preallocated, by writing far out, by many hard links
# layer: file size limit; size-limited tmpfs
# category: files
# outcomes: OK
# evidence: truncate, far write, preallocate, all directories full
# host: unchanged, others served
import signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fd = os.open("/tmp/f", os.O_CREAT | os.O_RDWR)
refused("truncate", lambda: os.ftruncate(fd, 1 << 60), "EFBIG", "EINVAL")
refused("far write", lambda: os.pwrite(fd, b"x", 1 << 50), "EFBIG")
refused("preallocate", lambda: os.posix_fallocate(fd, 0, 1 << 40), "EFBIG", "ENOSPC")
total = 0
for directory in ("/tmp", "/workspace", "/dev/shm"):
    number = 0
    try:
        while total < 1 << 30:
            file = os.open(f"{directory}/{number}", os.O_CREAT | os.O_WRONLY)
            number += 1
            for _ in range(32):
                total += os.write(file, bytes(1 << 20))
            os.close(file)
    except OSError:
        pass
(held if total <= 3 * (64 << 20) else breach)("all directories full", f"{total >> 20} MiB")
