# attempts: see, ask about and adjust processes of the host
# layer: pid namespace; /proc of our own
# category: processes
# outcomes: OK
# evidence: listed, in proc, limits, priority, affinity, session, group, scheduler, parent, robust list, of the same user
# host: unchanged
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
(held if pids == [1] else breach)("listed", pids)
outside = [HOST["victim_pid"], HOST["worker_pid"]]
room = ctypes.create_string_buffer(128)
for pid in outside:
    refused("in proc", lambda: os.listdir(f"/proc/{pid}"), "ENOENT")
    refused("limits", lambda: call("prlimit64", pid, 7, 0, room), "ESRCH")
    refused("priority", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19), "ESRCH")
    refused("affinity", lambda: os.sched_setaffinity(pid, {0}), "ESRCH")
    refused("session", lambda: os.getsid(pid), "ESRCH")
    refused("group", lambda: os.setpgid(0, pid), "EPERM", "ESRCH")
    refused("scheduler", lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)), "ESRCH")
    refused("robust list", lambda: call("get_robust_list", pid, room, room), "ESRCH")
(held if os.getppid() == 0 else breach)("parent", os.getppid())
# As an ordinary user, "all of this user's" would include the worker: the host looks whether its priority has changed.
IOPRIO_WHO_USER, IDLE = 3, 3 << 13
os.setpriority(os.PRIO_USER, os.getuid(), 19)
call("ioprio_set", IOPRIO_WHO_USER, os.getuid(), IDLE)
held("of the same user", "ours only")
