# attempts: take all memory by many processes, each below its own limit
# layer: control groups
# category: resources
# outcomes: MEMORY_LIMIT_EXCEEDED GUEST_CRASHED
# evidence: started
# host: unchanged, others served
# needs: control groups
held("started", fd=2)
reader, writer = os.pipe()
for _ in range(16):
    if os.fork() == 0:
        hoard = bytearray(128 << 20)
        os.write(writer, b"x")
        time.sleep(1000)
got = sum(len(os.read(reader, 1)) for _ in range(16))
breach("started", f"{got * 128} MiB taken")
