# attempts: outlive the session: doubly forked, in a session of its own, deaf to signals, under another name, stopped
# layer: pid namespace
# category: processes
# outcomes: OK
# evidence: daemon, deaf, renamed, stopped, grandchildren, program
# host: unchanged
import signal
import subprocess


def deaf(name):
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    _libc.prctl(15, name.encode(), 0, 0, 0)
    os.closerange(0, 256)
    while True:
        time.sleep(1000)


for name in ("daemon", "deaf", "renamed"):
    if os.fork() == 0:
        deaf({"daemon": HOST["tag"], "deaf": "kworker/0:1", "renamed": "systemd"}[name])
    held(name)
stopped = os.fork()
if stopped == 0:
    while True:
        signal.pause()
os.kill(stopped, signal.SIGSTOP)
os.waitpid(stopped, os.WUNTRACED)
held("stopped")
for _ in range(3):
    if os.fork() == 0:
        for _ in range(3):
            os.fork() == 0 and os.setsid()
        while True:
            time.sleep(1000)
held("grandchildren")
subprocess.Popen(["/bin/sh", "-c", "trap '' TERM HUP INT; while :; do sleep 1000; done"], start_new_session=True)
held("program")
return "left them running"
