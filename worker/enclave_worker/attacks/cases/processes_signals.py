# attempts: signal processes of the host by kill, queue, pidfd, thread, owner of a descriptor and timer
# layer: pid namespace
# category: processes
# outcomes: OK
# evidence: kill, zero, queued, thread, pidfd, owner, group, everybody, timer
# host: unchanged
import fcntl
import signal
import struct

outside = [HOST["victim_pid"], HOST["worker_pid"]]
room = ctypes.create_string_buffer(struct.pack("iiiii", 10, 0, -1, 0, 0) + bytes(108))
for pid in outside:
    refused("zero", lambda: os.kill(pid, 0), "ESRCH")
    refused("queued", lambda: call("rt_sigqueueinfo", pid, 10, room), "ESRCH", "EPERM")
    refused("thread", lambda: call("tgkill", pid, pid, 10), "ESRCH")
    refused("thread", lambda: call("tkill", pid, 10), "ESRCH")
    refused("pidfd", lambda: os.pidfd_open(pid), "ESRCH", "EINVAL")
    refused("group", lambda: os.killpg(pid, 18), "ESRCH")
refused("kill", lambda: os.kill(outside[0], signal.SIGKILL), "ESRCH")
refused("kill", lambda: os.kill(outside[0], signal.SIGSTOP), "ESRCH")
# With nobody else in here, -1 means nobody.
refused("everybody", lambda: os.kill(-1, signal.SIGCONT), "ESRCH")
reader, writer = os.pipe()
refused("owner", lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, outside[0]), "ESRCH")
owner = ctypes.create_string_buffer(struct.pack("ii", 1, outside[0]))
refused("owner", lambda: call("fcntl", reader, 15, owner), "ESRCH")
timer = ctypes.c_int()
event = ctypes.create_string_buffer(struct.pack("QiiI", 0, 10, 4, outside[0]) + bytes(44))
refused("timer", lambda: call("timer_create", 1, event, ctypes.byref(timer)), "EINVAL")
