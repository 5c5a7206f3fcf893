# attempts: be somebody else: capabilities, ids, groups, ambient sets, file owners
# layer: no capabilities; user namespace
# category: identity
# outcomes: OK
# evidence: sets, capset, ambient, bounding, ids, groups, owners, filesystem ids
# host: unchanged
import struct

status = dict(line.split(":\t", 1) for line in own_text("/proc/self/status").splitlines() if ":\t" in line)
sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
(breach if any(sets.values()) else held)("sets", sets)
header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
wanted = ctypes.create_string_buffer(struct.pack("6I", *[0xFFFFFFFF] * 6))
refused("capset", lambda: call("capset", header, wanted), "EPERM")
for capability in (0, 12, 21):
    refused("ambient", lambda: call("prctl", 47, 2, capability, 0, 0), "EPERM")
    (breach if call("prctl", 23, capability, 0, 0, 0) else held)("bounding", capability)
for uid in (0, 1, 65534):
    for name in ("setuid", "setgid"):
        refused("ids", lambda: call(name, uid), "EPERM")
    for name in ("setreuid", "setregid"):
        refused("ids", lambda: call(name, uid, uid), "EPERM")
    for name in ("setresuid", "setresgid"):
        refused("ids", lambda: call(name, uid, uid, uid), "EPERM")
    for name in ("setfsuid", "setfsgid"):
        refused("filesystem ids", lambda: call(name, uid), "EPERM")
open("/tmp/mine", "w").close()
refused("owners", lambda: os.chown("/tmp/mine", 0, 0), "EPERM")
refused("groups", lambda: os.setgroups([0, 27]), "EPERM")
