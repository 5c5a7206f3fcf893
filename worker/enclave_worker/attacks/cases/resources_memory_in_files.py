# attempts: take memory that belongs to no process: tmpfs, pipes, socket buffers, all of a sandbox's at once
# layer: control groups
# category: resources
# outcomes: OK MEMORY_LIMIT_EXCEEDED GUEST_CRASHED
# evidence: started
# host: unchanged, others served
# needs: control groups
import socket

held("started", fd=2)
for directory in ("/tmp", "/workspace", "/dev/shm"):
    with open(f"{directory}/f", "wb") as file:
        file.write(bytes(60 << 20))
for _ in range(40):
    if os.fork() == 0:
        pairs = []
        while True:
            try:
                a, b = socket.socketpair()
                pairs.append((a, b))
                a.setblocking(False)
                a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
                while True:
                    a.send(bytes(1 << 16))
            except BlockingIOError:
                continue
            except OSError:
                time.sleep(1000)
time.sleep(3)
