# attempts: take all memory in one process
# layer: memory limit
# category: resources
# outcomes: MEMORY_LIMIT_EXCEEDED
# evidence: started
# host: unchanged, others served
held("started", fd=2)
hoard = []
while len(hoard) < 1024:
    hoard.append(bytearray(16 << 20))
breach("started", f"{len(hoard) * 16} MiB taken")
return "never refused"
