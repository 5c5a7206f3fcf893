# attempts: a fork bomb, every process of which goes on forking
# layer: process limit; deadline
# category: resources
# outcomes: DEADLINE_EXCEEDED PROCESS_LIMIT_EXCEEDED
# evidence: limit
# host: unchanged, others served
# limits: {"deadlineMs": 2000}
pids = []
try:
    while len(pids) < 2000:
        pid = os.fork()
        if pid == 0:
            time.sleep(0.5)
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
        pids.append(pid)
except BlockingIOError:
    pass
(held if len(pids) < 1000 else breach)("limit", f"{len(pids)} processes")
while True:
    try:
        os.fork()
    except OSError:
        pass
