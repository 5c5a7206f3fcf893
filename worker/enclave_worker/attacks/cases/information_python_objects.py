# attempts: walk from our own frame up into the zygote, and through every object, for what its worker told it
# layer: a zygote without secrets
# category: information
# outcomes: OK
# evidence: frames, objects, sockets, siblings
# host: unchanged
import gc
import re
import socket
import types

needle = re.compile("enclave-" + r"canary\.[A-Za-z /]+\.[0-9a-f]{16}")
frame, names, texts = sys._getframe(), [], []
while frame:
    names.append(frame.f_code.co_name)
    texts += [
        repr(value)
        for value in (*frame.f_locals.values(), *frame.f_globals.values())
        if isinstance(value, (str, bytes, dict))
    ]
    frame = frame.f_back
(breach if any(needle.search(text) for text in texts) else held)("frames", " ".join(names))
zygotes = [value for value in gc.get_objects() if type(value).__name__ == "Zygote"]
strings = [value for value in gc.get_objects() if isinstance(value, (str, bytes)) and needle.search(str(value))]
(breach if strings else held)("objects", f"{len(zygotes)} zygotes")
# The zygote's socket may still be an object here, but there must be nothing behind its number.
for value in gc.get_objects():
    if isinstance(value, socket.socket) and value.fileno() > 3:
        try:
            os.fstat(value.fileno())
        except OSError:
            continue
        if value.family == socket.AF_UNIX and value.type == socket.SOCK_SEQPACKET:
            breach("sockets", value)
held("sockets")
held("siblings", [getattr(zygote, "_ids", None) for zygote in zygotes])
for pid in {pid for zygote in zygotes for pid in getattr(zygote, "_ids", ())} - {1}:
    refused("siblings", lambda: os.kill(pid, 0), "ESRCH")
