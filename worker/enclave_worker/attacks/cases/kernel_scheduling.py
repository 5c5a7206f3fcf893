# attempts: run before everybody else: real-time classes, priorities, io priorities, locked memory, node policies
# layer: resource limits; no capabilities
# category: kernel
# outcomes: OK
# evidence: real time, deadline class, nice, io priority, locked memory, node policy, raised limits
# host: unchanged
import resource
import struct

for policy in (os.SCHED_FIFO, os.SCHED_RR):
    refused("real time", lambda: os.sched_setscheduler(0, policy, os.sched_param(1)), "EPERM")
attributes = ctypes.create_string_buffer(struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 10**7, 10**8, 10**8))
refused("deadline class", lambda: call("sched_setattr", 0, attributes, 0), "EPERM", "EBUSY")
refused("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -20), "EACCES", "EPERM")
REAL_TIME = 1 << 13
refused("io priority", lambda: call("ioprio_set", 1, 0, REAL_TIME), "EPERM")
room = ctypes.create_string_buffer(4096)
refused("locked memory", lambda: call("mlockall", 3), "EPERM")
refused("locked memory", lambda: call("mlock", ctypes.addressof(ctypes.create_string_buffer(1 << 20)) & ~4095, 1 << 20))
refused("node policy", lambda: call("set_mempolicy", 1, room, 64), *FILTERED)
refused("node policy", lambda: call("migrate_pages", 0, 64, room, room), *FILTERED)


def raised(number):
    try:
        resource.setrlimit(number, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except ValueError as error:
        raise OSError(errno.EPERM, str(error)) from None


for name in ("CORE", "NOFILE", "NPROC", "FSIZE", "AS", "MEMLOCK", "MSGQUEUE", "SIGPENDING", "NICE", "RTPRIO"):
    refused("raised limits", lambda: raised(getattr(resource, f"RLIMIT_{name}")))
