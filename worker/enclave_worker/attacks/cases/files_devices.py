# attempts: make device nodes everywhere, and open the devices that a careless /dev has
# layer: Landlock; no capabilities; nodev; a /dev of five
# category: files
# outcomes: OK
# evidence: block, character, mknodat, memory, disks, virtual machines, tun, fuse, terminals, kernel log, list, controls
# host: unchanged
for directory in ("/tmp", "/workspace", "/dev/shm"):
    refused("block", lambda: os.mknod(f"{directory}/b", 0o60666, os.makedev(8, 0)), "EPERM", "EACCES")
    refused("character", lambda: os.mknod(f"{directory}/c", 0o20666, os.makedev(1, 1)), "EPERM", "EACCES")
refused("mknodat", lambda: call("mknodat", -100, b"/tmp/d", 0o20666, os.makedev(10, 200)), "EPERM", "EACCES")
DEVICES = {
    "memory": ("mem", "kmem", "port"),
    "disks": ("sda", "vda", "nvme0n1", "loop0", "loop-control", "mapper/control"),
    "virtual machines": ("kvm", "vsock", "vhost-net", "vhost-vsock"),
    "tun": ("net/tun",),
    "fuse": ("fuse", "userfaultfd", "uinput", "hpet"),
    "terminals": ("tty", "console", "ptmx", "tty0", "ttyS0", "pts/0", "pts/ptmx"),
    "kernel log": ("kmsg",),
}
for name, files in DEVICES.items():
    for file in files:
        refused(name, lambda: os.open(f"/dev/{file}", os.O_RDWR), "ENOENT", "ENOTDIR")
import fcntl

RNDADDTOENTCNT, RNDZAPENTCNT, RNDCLEARPOOL, RNDRESEEDCRNG = 0x40045201, 0x5204, 0x5206, 0x5207
for name in ("random", "urandom"):
    device = os.open(f"/dev/{name}", os.O_RDWR)
    for code in (RNDADDTOENTCNT, RNDZAPENTCNT, RNDCLEARPOOL, RNDRESEEDCRNG):
        refused("controls", lambda: fcntl.ioctl(device, code, b"\0\0\0\x7f"), "EPERM")
known = {"null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout", "stderr", "shm"}
if set(os.listdir("/dev")) <= known:
    held("list")
else:
    breach("list", set(os.listdir("/dev")) - known)
