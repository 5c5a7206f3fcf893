# attempts: stop everybody in the sandbox, the driver by its children, its children by each other, and hang there
# layer: deadline outside the sandbox
# category: processes
# outcomes: DEADLINE_EXCEEDED
# evidence: first process, siblings, terminal stops
# host: unchanged, others served
# limits: {"deadlineMs": 1500}
import signal


def stop_driver():
    refused("first process", lambda: os.kill(1, signal.SIGSTOP), "EPERM")
    refused("first process", lambda: os.kill(1, signal.SIGKILL), "EPERM")


in_child(stop_driver)
pids = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    pids.append(pid)
for pid in pids:
    os.kill(pid, signal.SIGSTOP)
held("siblings", len(pids))
for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
    os.kill(1, number)
held("terminal stops")
os.waitpid(pids[0], 0)  # never
