"""What a guest can see and change of the file system."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Attack

# The root was pivoted away and detached: host paths that are not the interpreter's do not exist.
HOST_FILES = ["/etc/shadow", "/etc/hostname", "/home", "/var/log", "/boot", "/sys/kernel", "/run"]


@pytest.mark.parametrize("path", HOST_FILES)
def test_reading_a_host_path_finds_nothing(attack: Attack, path: str) -> None:
    outcome = attack(
        f"return attempt(lambda: os.listdir({path!r}) if os.path.isdir({path!r}) else open({path!r}).read())"
    )

    assert outcome.result in {"ENOENT", "EACCES"}


def test_reading_the_project_and_its_tests_finds_nothing(attack: Attack) -> None:
    here = Path(__file__).resolve()

    outcome = attack(
        f"return [attempt(lambda: open({str(here)!r}).read()), attempt(lambda: os.listdir({str(here.parents[2])!r}))]"
    )

    assert outcome.result == ["ENOENT", "ENOENT"]


def test_listing_the_root_shows_only_the_sandbox(attack: Attack) -> None:
    names = set(attack("return os.listdir('/')").result)
    prefix = Path(sys.base_prefix).resolve().parts[1]

    allowed = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "tmp", "usr", "workspace", prefix}
    assert names <= allowed
    assert set(attack("return os.listdir('/etc')").result) == {"passwd", "group", "hosts", "nsswitch.conf"}
    assert set(attack("return os.listdir('/dev')").result) == {
        "fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero",
    }  # fmt: skip


@pytest.mark.parametrize("link", ["/proc/1/root", "/proc/self/root", "/proc/self/cwd/..", "/proc/1/cwd/../..", "/.."])
def test_a_way_round_the_root_leads_back_into_it(attack: Attack, link: str) -> None:
    # /proc belongs to the sandbox's own pid namespace, in which 1 is the guest.
    outcome = attack(f"return [attempt(lambda: os.listdir({link!r})), repr(os.listdir('/'))]")

    seen, root = outcome.result
    assert seen in {"EACCES", "EPERM", "ENOENT", f"WORKED: {root}"[:300]}


@pytest.mark.parametrize("path", ["/x", "/etc/passwd", "/usr/bin/x", "/dev/x", "/proc/self/comm", "/proc/sys/kernel/x"])
def test_writing_to_a_read_only_place_fails(attack: Attack, path: str) -> None:
    outcome = attack(f"return attempt(lambda: open({path!r}, 'w').write('x'))")

    assert outcome.result in {"EROFS", "EACCES", "ENOENT", "EPERM"}


def test_overwriting_the_interpreter_or_its_library_fails(attack: Attack) -> None:
    outcome = attack("""
import json
exe = os.path.realpath(sys.executable or '/proc/self/exe')
tried = [json.__file__, os.path.dirname(json.__file__) + '/planted.py', '/proc/self/exe', exe]
return [attempt(lambda: open(path, 'r+b' if os.path.exists(path) else 'w')) for path in tried]
""")

    assert not [result for result in outcome.result if result.startswith("WORKED")]


def test_the_hosts_installed_packages_are_not_there(attack: Attack) -> None:
    outcome = attack("""
found = []
for name in ('websockets', 'msgspec', 'enclave_worker', 'enclave_protocol', 'pytest', 'pip'):
    try:
        __import__(name)
        found.append(name)
    except ImportError:
        pass
return found
""")

    assert outcome.result == []


def test_device_nodes_cannot_be_made(attack: Attack) -> None:
    # mknod needs CAP_MKNOD in the first user namespace, every mount is nodev, and no Landlock rule allows it.
    outcome = attack(
        "return [attempt(lambda: os.mknod(f'/tmp/{d}', 0o60600, os.makedev(*d))) for d in [(8, 0), (1, 1)]]"
    )

    assert set(outcome.result) <= {"EPERM", "EACCES"}


def test_a_setuid_file_gives_nothing(attack: Attack) -> None:
    # No new privileges, nosuid mounts, and one uid in the namespace.
    outcome = attack("""
import shutil, subprocess
shutil.copy('/bin/sh', '/tmp/sh')
os.chmod('/tmp/sh', 0o6755)
return subprocess.run(['/tmp/sh', '-c', 'id -u; id -ru'], capture_output=True, text=True).stdout.split()
""")

    assert outcome.result == ["1000", "1000"]


def test_filling_the_private_directories_stops_at_their_size(attack: Attack) -> None:
    outcome = attack("""
written = {}
for directory in ('/tmp', '/workspace', '/dev/shm'):
    total, stop = 0, None
    for n in range(100):
        try:
            with open(f'{directory}/{n}', 'wb', buffering=0) as f:
                total += f.write(bytes(4 << 20))
        except OSError as error:
            stop = errno.errorcode[error.errno]
            break
    for name in os.listdir(directory):
        os.unlink(f'{directory}/{name}')
    written[directory] = [total, stop]
return written
""")

    for total, stop in outcome.result.values():
        assert total <= 64 << 20
        assert stop == "ENOSPC"


def test_filling_a_directory_with_empty_files_stops_at_its_inodes(attack: Attack) -> None:
    outcome = attack("""
for n in range(20_000):
    try:
        open(f'/tmp/{n}', 'w').close()
    except OSError as error:
        return [n, errno.errorcode[error.errno]]
""")

    count, stop = outcome.result
    assert count <= 8192
    assert stop == "ENOSPC"


def test_one_session_sees_no_file_of_another(attack: Attack) -> None:
    attack("for d in ('/tmp', '/workspace', '/dev/shm'): open(d + '/mark', 'w').write('mine')")

    outcome = attack("return [os.listdir(d) for d in ('/tmp', '/workspace', '/dev/shm')]")

    assert outcome.result == [[], [], []]


def test_the_mount_table_names_no_host_path(attack: Attack) -> None:
    outcome = attack("return [attempt(lambda: open(f'/proc/{n}').read()) for n in ('self/mountinfo', 'self/mounts')]")

    assert str(Path(__file__).parents[2]) not in repr(outcome.result)
