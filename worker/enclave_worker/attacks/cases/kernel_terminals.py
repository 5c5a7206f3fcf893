# attempts: type into somebody's terminal, or take one
# layer: system call filter; own session
# category: kernel
# outcomes: OK
# evidence: typing, console, controlling, hang up, foreground group
# host: unchanged
import fcntl

TIOCSTI, TIOCLINUX, TIOCSCTTY, TIOCSPGRP = 0x5412, 0x541C, 0x540E, 0x5410
for fd in range(4):
    refused("typing", lambda: fcntl.ioctl(fd, TIOCSTI, b"x"), "EPERM")
    refused("console", lambda: fcntl.ioctl(fd, TIOCLINUX, b"\x02"), "EPERM")
    refused("controlling", lambda: fcntl.ioctl(fd, TIOCSCTTY, 1), "ENOTTY", "EPERM")
    refused("foreground group", lambda: os.tcsetpgrp(fd, os.getpgrp()), "ENOTTY", "EPERM")
refused("controlling", lambda: os.open("/dev/tty", os.O_RDWR), "ENOENT", "ENXIO")
refused("hang up", lambda: call("vhangup"), *FILTERED)
