# attempts: hide a forbidden argument's bits in the half of a register that the kernel ignores (CVE-2019-10063)
# layer: system call filter: 32-bit comparison
# category: kernel
# outcomes: OK
# evidence: ioctl, socket, socketpair, prctl, personality
# host: unchanged
HIGH = 1 << 32
AF_VSOCK, AF_ALG, AF_NETLINK = 40, 38, 16
pair = ctypes.create_string_buffer(8)
key = ctypes.create_string_buffer(b"x")
for high in (0, HIGH, 0x7FFFFFFF << 32):
    refused("ioctl", lambda: call("ioctl", 0, high | 0x5412, key), "EPERM")
    for family in (AF_VSOCK, AF_ALG, AF_NETLINK):
        refused("socket", lambda: call("socket", high | family, 3, 0), "EAFNOSUPPORT")
        refused("socketpair", lambda: call("socketpair", high | family, 3, 0, pair), "EAFNOSUPPORT")
    refused("prctl", lambda: call("prctl", high | 4, 1, 0, 0, 0), "EPERM")
    refused("personality", lambda: call("personality", high | 0x0040000), "EPERM")
