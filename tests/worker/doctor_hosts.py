"""Hosts for the doctor to look at: made up, or this one with something spoilt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from enclave_worker import doctor
from enclave_worker.doctor_needs import Host

SCRIPT = Path(doctor.__file__).with_name("doctor_probes.py")
# Enters namespaces in which something is then spoilt, and becomes another program.
SPOILT = """
import os, sys
sys.path.insert(0, sys.argv[1])
import kernel

uid, gid = os.getuid(), os.getgid()
kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
exec(sys.argv[2])
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""
COMMAND = ("-P", "-m", "enclave_client.cli", "doctor")

NO_USER_NAMESPACES = "open('/proc/sys/user/max_user_namespaces', 'w').write('0')"


def run_spoilt(spoil: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python with these arguments in a user namespace in which `spoil` was executed first."""
    command = [sys.executable, "-I", "-S", "-c", SPOILT, str(SCRIPT.parent / "zygote"), spoil, *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=False)


def host(*, root: bool = False, container: str = "", **sysctls: str) -> Host:
    return Host(
        root=root,
        container=container,
        sysctls={name.replace("__", "/"): v for name, v in sysctls.items()},
        interpreter="/opt/enclave/bin/python3.12",
    )
