#!/bin/sh
# What run.sh runs if it is told nothing else: everything that stands on control groups, and what is left of them.
pytest() {
    timeout 400 .venv/bin/python -m pytest -p no:cacheprovider -q --color=no --tb=short "$@" || failed=1
}

failed=0
uname -r
pytest tests/worker/test_cgroups.py tests/worker/test_delegated_groups.py
pytest tests/attacks/test_limits.py
pytest tests/worker/test_server.py -k 'killed or starts or hundreds'
left=$(find /sys/fs/cgroup -mindepth 1 -type d)
[ -z "$left" ] || { echo "left behind: $left"; failed=1; }
exit "$failed"
