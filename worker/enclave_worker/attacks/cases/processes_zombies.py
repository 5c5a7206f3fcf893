# attempts: fill the sandbox with zombies and orphans that nobody reaps, and become their reaper
# layer: process limit; pid namespace
# category: processes
# outcomes: OK
# evidence: zombies, orphans, reaper
# host: unchanged, others served
SUBREAPER = 36


def zombie():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid


made = stops("zombies", zombie, 1000, "EAGAIN")
for pid in made[:20]:
    os.waitpid(pid, 0)


def orphaned():
    if os.fork() == 0:
        time.sleep(1000)


for _ in range(5):
    in_child(orphaned)
held("orphans", os.waitpid(-1, os.WNOHANG))
in_child(lambda: (call("prctl", SUBREAPER, 1, 0, 0, 0), orphaned(), held("reaper")))
