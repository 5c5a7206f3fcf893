# attempts: change or look through interfaces: addresses, routes, bridges, names, marks, transparent and bound sockets
# layer: network namespace; no capabilities
# category: network
# outcomes: OK
# evidence: list, configure, bridge, device, mark, transparent, routes, forward file
# host: unchanged
import fcntl
import socket
import struct

room = ctypes.create_string_buffer(4096)
inet = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
request = ctypes.create_string_buffer(struct.pack("iP", 4096, ctypes.addressof(room)))
call("ioctl", inet.fileno(), 0x8912, request)  # SIOCGIFCONF
count = struct.unpack_from("i", request)[0] // 40
listed = {room.raw[at * 40 : at * 40 + 16].rstrip(b"\0") for at in range(count)}
(held if listed <= {b"lo"} else breach)("list", listed)
loopback = struct.pack("16s24x", b"lo")
for code in (0x8914, 0x8916, 0x891C, 0x8922, 0x8923, 0x8924, 0x890B, 0x8953):
    refused("configure", lambda: fcntl.ioctl(inet, code, loopback), "EPERM", "EOPNOTSUPP", "ENOTTY", "EINVAL", "ENODEV")
refused("bridge", lambda: fcntl.ioctl(inet, 0x89A0, b"br0\0"), "EPERM", "ENOPKG", "ENOTTY", "EINVAL", "EOPNOTSUPP")
for device in (b"eth0", b"docker0", b"wlan0"):
    refused("device", lambda: inet.setsockopt(socket.SOL_SOCKET, 25, device), "ENODEV", "EPERM")
refused("mark", lambda: inet.setsockopt(socket.SOL_SOCKET, 36, 1), "EPERM")
refused("transparent", lambda: inet.setsockopt(socket.SOL_IP, 19, 1), "EPERM")
for address in ("169.254.169.254", "100.100.100.200", "10.0.0.1", "224.0.0.1", "255.255.255.255", "1.1.1.1"):
    refused("routes", lambda: inet.connect((address, 80)), "ENETUNREACH", "EACCES", "EHOSTUNREACH")
for path in ("/proc/self/net/route", "/proc/self/net/tcp", "/proc/self/net/unix"):
    text = own_text(path)
    if HOST["abstract"] in text or HOST["unix_path"] in text or "eth0" in text or f":{HOST['tcp_port']:04X}" in text:
        breach("forward file", path)
held("forward file", "nothing of the host's in /proc/self/net")
