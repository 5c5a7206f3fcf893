"""Waits for a line, then makes system calls that are easy to count, and a child that makes some too."""

from __future__ import annotations

import os
import sys

sys.stdin.readline()
for _ in range(50):
    os.getppid()
child = os.fork()
if not child:
    for _ in range(20):
        os.getuid()
    os._exit(0)
os.waitpid(child, 0)
sys.stdout.write("done\n")
sys.stdout.flush()
sys.stdin.readline()
