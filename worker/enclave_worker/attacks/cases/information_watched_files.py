# attempts: watch what the host and other sessions do with the files we all see: opened programs, by name
# layer: system call filter
# category: information
# outcomes: OK
# evidence: inotify, add watch, directory notification, lease
# host: unchanged, others served
import fcntl
import select
import signal

heard = b""
try:
    watch = call("inotify_init1", os.O_NONBLOCK)
except OSError as error:
    held("inotify", errno.errorcode[error.errno])
else:
    ALL = 0xFFF
    _libc.inotify_add_watch(watch, b"/usr/bin", ALL)
    select.select([watch], [], [], 2)  # until a bystander starts a program
    heard = os.read(watch, 4096)
    breach("inotify", heard)
refused("add watch", lambda: call("inotify_add_watch", 0, b"/usr/bin", 1), *FILTERED)
ACCESS = 1
directory = os.open("/usr/bin", os.O_RDONLY | os.O_DIRECTORY)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
refused("directory notification", lambda: fcntl.fcntl(directory, fcntl.F_NOTIFY, ACCESS), "EPERM")
program = os.open(os.path.realpath("/bin/sh"), os.O_RDONLY)
refused("lease", lambda: fcntl.fcntl(program, fcntl.F_SETLEASE, fcntl.F_RDLCK), "EPERM")
