# attempts: leave the root by chroot, pivot_root, a directory held open, and a shared file system structure
# layer: system call filter; pivoted root
# category: kernel
# outcomes: OK
# evidence: chroot, pivot_root, held directory, above the root, shared structure
# host: unchanged
import socket

refused("chroot", lambda: os.chroot("/tmp"), *FILTERED)
refused("pivot_root", lambda: call("pivot_root", b".", b"."), *FILTERED)
# The classic: hold a directory, move the root below it, climb. Without chroot the first half is all there is.
held_open = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
os.fchdir(held_open)
for _ in range(64):
    os.chdir("..")
names = set(os.listdir("."))
(breach if names - set(os.listdir("/")) else held)("above the root", sorted(names))
left, right = socket.socketpair()
socket.send_fds(left, [b"x"], [held_open])
_, got, _, _ = socket.recv_fds(right, 1, 1)
refused(
    "held directory", lambda: os.open(".." + HOST["secret_files"][0], os.O_RDONLY, dir_fd=got[0]), "ENOENT", "EACCES"
)
CLONE_FS = 0x200
refused("shared structure", lambda: call("unshare", CLONE_FS), *FILTERED)
