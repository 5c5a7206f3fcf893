# attempts: search all memory of this process, inherited from the zygote, for the host's secrets
# layer: a zygote that is a program of its own
# category: information
# outcomes: OK
# evidence: mappings, control
# host: unchanged
import re

pattern = re.compile(b"enclave-" + rb"canary\.[A-Za-z /]+\.[0-9a-f]{16}")
planted = "enclave-" + "canary.control." + "0123456789abcdef"  # what a search that works does find
seen, found = 0, set()
for line in own_text("/proc/self/maps").splitlines():
    parts = line.split()
    low, high = (int(part, 16) for part in parts[0].split("-"))
    if "r" not in parts[1] or parts[-1] in ("[vvar]", "[vsyscall]", "[vvar_vclock]") or high - low > 256 << 20:
        continue
    seen += 1
    found |= {bytes(match) for match in pattern.findall((ctypes.c_char * (high - low)).from_address(low).raw)}
(held if planted.encode() in found else breach)("control", f"a search of {seen} mappings found {len(found)}")
(breach if found - {planted.encode()} else held)("mappings", found - {planted.encode()})
