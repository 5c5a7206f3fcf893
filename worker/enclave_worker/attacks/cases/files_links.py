# attempts: carry a host inode into a writable place: hard links, O_TMPFILE, linkat by descriptor, bind by rename
# layer: one mount each, no capabilities
# category: files
# outcomes: OK
# evidence: hard link, link by descriptor, unnamed file, exchange, link to a socket, clone range
# host: unchanged
EMPTY_PATH = 0x1000
library = os.path.dirname(os.__file__)
refused("hard link", lambda: os.link("/etc/passwd", "/tmp/passwd"), "EXDEV", "EPERM")
refused("hard link", lambda: os.link(f"{library}/this.py", "/workspace/this.py"), "EXDEV", "EPERM")
fd = os.open(f"{library}/this.py", os.O_RDONLY)
refused("link by descriptor", lambda: call("linkat", fd, b"", -100, b"/tmp/linked", EMPTY_PATH), "ENOENT", "EXDEV")
refused("unnamed file", lambda: os.open(library, os.O_TMPFILE | os.O_RDWR), "EROFS", "EACCES")
open("/tmp/mine", "w").close()
refused("exchange", lambda: call("renameat2", -100, b"/tmp/mine", -100, b"/etc/passwd", 2), "EXDEV", "EROFS")
os.symlink(HOST["unix_path"], "/tmp/way")
import socket

refused("link to a socket", lambda: socket.socket(socket.AF_UNIX).connect("/tmp/way"), "ENOENT", "EACCES")
import fcntl

target = os.open("/tmp/mine", os.O_RDWR)
refused("clone range", lambda: fcntl.ioctl(fd, 0x40049409, target), "EBADF", "EXDEV", "EOPNOTSUPP", "EINVAL", "ENOTTY")
