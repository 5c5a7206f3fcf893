# attempts: not to end: every signal blocked and ignored, exceptions caught, threads spinning in every process
# layer: deadline; pid namespace
# category: processes
# outcomes: DEADLINE_EXCEEDED
# evidence: deaf
# host: unchanged, others served
# limits: {"deadlineMs": 1500}
import signal
import threading

for number in signal.valid_signals():
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for _ in range(2):
    os.fork()
if os.getpid() == 1:
    held("deaf")
threading.Thread(target=lambda: sum(range(10**12)), daemon=True).start()
while True:
    try:
        while True:
            pass
    except BaseException:
        continue
