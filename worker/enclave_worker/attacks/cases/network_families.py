# attempts: open sockets of every family: netlink, packet, vsock, crypto, XDP and all that the kernel may load
# layer: system call filter: socket families
# category: network
# outcomes: OK
# evidence: netlink, packet, vsock, alg, xdp, others, pairs, raw
# host: unchanged
import socket

NAMES = {16: "netlink", 17: "packet", 38: "alg", 40: "vsock", 44: "xdp"}
for family in range(64):
    if family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        continue
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        refused(NAMES.get(family, "others"), lambda: call("socket", family, kind, 0), "EAFNOSUPPORT")
    refused("pairs", lambda: call("socketpair", family, 2, 0, ctypes.create_string_buffer(8)), "EAFNOSUPPORT")
for family in (socket.AF_INET, socket.AF_INET6):
    for protocol in (1, 6, 17, 58, 255):
        refused(
            "raw",
            lambda: socket.socket(family, socket.SOCK_RAW, protocol),
            "EPERM",
            "EACCES",
            "EPROTONOSUPPORT",
            "EINVAL",
        )
