# attempts: connect to what listens on the host: TCP and UDP by every one of its addresses, abstract and path sockets
# layer: network namespace; pivoted root
# category: network
# outcomes: OK
# evidence: tcp, udp, mapped, abstract, path, steal the port
# host: unchanged
import contextlib
import socket

for address in (*HOST["addresses"], "0.0.0.0", "127.0.0.2"):
    refused("tcp", lambda: print(socket.create_connection((address, HOST["tcp_port"]), 2).recv(99)))
    with contextlib.suppress(OSError):  # where there is a route to ourselves, it arrives nowhere
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hello", (address, HOST["udp_port"]))
    held("udp", address)
    refused("mapped", lambda: socket.create_connection((f"::ffff:{address}", HOST["tcp_port"]), 2))
refused(
    "abstract",
    lambda: socket.socket(socket.AF_UNIX).connect(b"\0" + HOST["abstract"].encode()),
    "ECONNREFUSED",
    "EPERM",
)
refused("path", lambda: socket.socket(socket.AF_UNIX).connect(HOST["unix_path"]), "ENOENT", "EACCES")
# The same port is free in here, and taking it takes it from nobody.
thief = socket.create_server(("127.0.0.1", HOST["tcp_port"]), reuse_port=True)
held("steal the port", f"our own {thief.getsockname()[1]}")
