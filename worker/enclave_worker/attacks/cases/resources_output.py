# attempts: flood both outputs from many processes, without a newline, faster than anybody reads
# layer: output caps; back pressure
# category: resources
# outcomes: DEADLINE_EXCEEDED
# evidence: flooding
# host: unchanged, others served
# limits: {"deadlineMs": 1500}
held("flooding")
for _ in range(3):
    os.fork()
block = b"\xff" * 65536
while True:
    os.write(1, block)
    os.write(2, block)
