"""Taking more than a sandbox's share, by every way that a limit of single processes does not see.

Needs control groups: the kernel counts the sandbox as a whole. Ways that it refuses without them are attacked too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Attack, Target

MIB = 1 << 20
LIMIT = 128 * MIB

MEMORY = {
    "many processes, each within its limit": """
for _ in range(8):
    if os.fork() == 0:
        kept = bytearray(40 << 20)
        os.read(3, 0); import signal; signal.pause()
import signal; signal.pause()
""",
    "files in every writable directory": """
for directory in ('/tmp', '/workspace', '/dev/shm'):
    with open(directory + '/f', 'wb') as file:
        for _ in range(60): file.write(bytes(1 << 20))
return 'kept'
""",
    "files of a process that has ended": """
if os.fork() == 0:
    for name in '/tmp/f', '/workspace/f', '/dev/shm/f':
        with open(name, 'wb') as file:
            for _ in range(40): file.write(bytes(1 << 20))
    os._exit(0)
os.wait()
kept = bytearray(60 << 20)
return 'kept'
""",
    "anonymous files that nothing maps": """
held = []
while True:
    held.append(os.memfd_create('x'))
    for _ in range(32): os.write(held[-1], bytes(1 << 20))
""",
    "System V segments that nothing maps": """
_libc.shmat.restype = ctypes.c_void_p
_libc.shmdt.argtypes = (ctypes.c_void_p,)
while True:
    number = _libc.shmget(0, 16 << 20, 0o1600)
    address = _libc.shmat(number, None, 0)
    ctypes.memset(address, 1, 16 << 20)
    _libc.shmdt(address)
""",
    "shared anonymous mappings of a child": """
import mmap
for _ in range(8):
    if os.fork() == 0:
        area = mmap.mmap(-1, 40 << 20)
        for at in range(0, len(area), 4096): area[at] = 1
        import signal; signal.pause()
import signal; signal.pause()
""",
}


@pytest.fixture(autouse=True)
def _needs_control_groups(target: Target) -> None:
    if target.level not in {"STRICT", "SECURE"}:
        pytest.skip(f"the worker's level here is {target.level}: no control groups")


@pytest.mark.parametrize("code", MEMORY.values(), ids=MEMORY)
def test_memory_is_the_whole_sandboxs_however_it_is_taken(attack: Attack, code: str) -> None:
    outcome = attack(code, memoryLimitBytes=LIMIT)

    assert outcome.code == "MEMORY_LIMIT_EXCEEDED"
    assert outcome.final["stats"]["peakMemoryBytes"] <= LIMIT


def test_a_child_killed_for_memory_cannot_be_hidden(attack: Attack) -> None:
    outcome = attack(
        "import subprocess\nreturn subprocess.run([sys.executable, '-c', 'x = bytearray(200 << 20)']).returncode",
        memoryLimitBytes=LIMIT,
    )

    assert outcome.code == "MEMORY_LIMIT_EXCEEDED"


def test_the_next_sandbox_in_the_same_place_has_its_whole_memory(attack: Attack) -> None:
    attack("with open('/tmp/f', 'wb') as file: file.write(bytes(50 << 20))")
    outcome = attack("return len(bytearray(100 << 20))", memoryLimitBytes=LIMIT)

    assert outcome.result == 100 * MIB


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import threading\nfor _ in range(4): threading.Thread(target=lambda: sum(range(10**12))).start()",
        "for _ in range(6):\n    if os.fork() == 0:\n        while True: pass\nos.wait()",
        "while True:\n    if os.fork() == 0:\n        sum(range(10**6)); os._exit(0)\n    os.wait()",
        "import subprocess\nsubprocess.run([sys.executable, '-c', 'while True: pass'])",
        "sum(range(10**12))",
    ],
    ids=["a loop", "threads", "processes", "short-lived processes", "another program", "one call"],
)
def test_processor_time_is_the_whole_sandboxs_however_it_is_burnt(attack: Attack, code: str) -> None:
    outcome = attack(code, cpuTimeMs=300)

    assert outcome.code == "CPU_LIMIT_EXCEEDED"
    assert outcome.final["stats"]["cpuMs"] >= 300


def test_work_left_to_a_child_nobody_waits_for_is_counted(attack: Attack) -> None:
    outcome = attack("""
import time
done, end = os.pipe()
if os.fork() == 0:
    while time.process_time() < 0.3: pass
    os._exit(0)
os.close(end)
return os.read(done, 1).decode() or 'done'
""")

    assert outcome.result == "done"
    assert outcome.final["stats"]["cpuMs"] >= 300


@pytest.mark.parametrize(
    "code",
    [
        "while True:\n    if os.fork() == 0:\n        import signal; signal.pause()",
        "import threading\nwhile True: threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "import subprocess\nkept = []\nwhile True: kept.append(subprocess.Popen(['/bin/sleep', '60']))",
    ],
    ids=["processes", "threads", "programs"],
)
def test_a_process_too_many_has_its_own_code(attack: Attack, code: str) -> None:
    outcome = attack(code)

    assert outcome.code == "PROCESS_LIMIT_EXCEEDED"
    assert outcome.final["stats"]["refusedProcesses"] >= 1


def test_a_fork_bomb_is_told_even_if_the_guest_shrugs_it_off(attack: Attack) -> None:
    outcome = attack("""
for _ in range(100):
    try:
        if os.fork() == 0:
            import signal; signal.pause()
    except OSError:
        pass
return 'shrugged'
""")

    assert outcome.result == "shrugged"
    assert 36 <= outcome.final["stats"]["refusedProcesses"] <= 100


@pytest.mark.parametrize("directory", ["/tmp", "/workspace", "/dev/shm"])
def test_a_full_disk_has_its_own_code(attack: Attack, directory: str) -> None:
    code = f"for number in range(9):\n    with open(f'{directory}/{{number}}', 'wb') as file:\n"

    assert attack(f"{code}        for _ in range(20): file.write(bytes(1 << 20))").code == "DISK_LIMIT_EXCEEDED"
    assert attack(f"for n in range(20_000): open(f'{directory}/{{n}}', 'w').close()").code == "DISK_LIMIT_EXCEEDED"


def test_the_guest_sees_no_control_group_but_its_own_root(attack: Attack) -> None:
    groups = attack("return open('/proc/self/cgroup').read()").result

    assert {line.split(":", 2)[2] for line in groups.splitlines() if line.split(":")[1] in {"memory", "pids"}} <= {"/"}
    assert attack("return os.path.exists('/sys')").result is False
