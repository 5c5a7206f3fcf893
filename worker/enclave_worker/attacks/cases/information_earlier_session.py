# attempts: leave things for the next session of the same zygote, and find them there
# layer: one sandbox per session
# category: information
# outcomes: OK
# evidence: files, modules, builtins, environment, memory, limits, directory, names, signals, children
# host: unchanged
import builtins
import gc
import json
import random
import resource
import signal

for path in ("/tmp", "/workspace", "/dev/shm"):
    with open(f"{path}/left-behind", "w") as file:
        file.write("enclave-left-behind")
sys.modules["planted_module"] = json
json.planted = builtins.planted = os.planted = random.planted = True
builtins.len = json.dumps
os.environ["LEFT_BEHIND"] = "1"
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
os.chdir("/tmp")
os.umask(0)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
sys.path.insert(0, "/tmp")
sys.setrecursionlimit(123)
hoard = [b"enclave-left-" + b"in-memory" * 1000 for _ in range(2000)]
gc.freeze()
os.fork() or time.sleep(1000)
# %% session
import builtins
import json
import random
import re
import resource
import signal

left = [f"{path}/{name}" for path in ("/tmp", "/workspace", "/dev/shm") for name in os.listdir(path)]
(breach if left else held)("files", left)
(breach if "planted_module" in sys.modules else held)("modules")
planted = [module for module in (json, builtins, os, random) if hasattr(module, "planted")]
(breach if planted or len([1, 2]) != 2 else held)("builtins", planted)
(breach if "LEFT_BEHIND" in os.environ else held)("environment")
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
(breach if limit[0] == 100 else held)("limits", limit)
(held if os.getcwd() == "/workspace" and "/tmp" not in sys.path and sys.getrecursionlimit() != 123 else breach)(
    "directory", os.getcwd()
)
(held if os.umask(0o22) == 0o22 else breach)("names", "umask")
(breach if signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN else held)("signals")
pids = [name for name in os.listdir("/proc") if name.isdigit()]
(held if pids == ["1"] else breach)("children", pids)
needle, found = re.compile(rb"enclave-left-in[-]memory"), 0
for line in own_text("/proc/self/maps").splitlines():
    parts = line.split()
    low, high = (int(part, 16) for part in parts[0].split("-"))
    if parts[1].startswith("rw") and high - low < 256 << 20:
        found += bool(needle.search((ctypes.c_char * (high - low)).from_address(low).raw))
(breach if found else held)("memory", found)
