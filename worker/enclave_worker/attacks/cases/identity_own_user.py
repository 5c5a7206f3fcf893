# attempts: find that the sandbox runs as a user who owns something on the host
# layer: own host user per sandbox
# category: identity
# outcomes: OK
# evidence: mapped to, owned
# host: unchanged
# needs: own host user
outside = int(own_text("/proc/self/uid_map").split()[1])
(held if outside not in (0, 65534) else breach)("mapped to", outside)
owners = {path: os.stat(path).st_uid for path in ("/", "/etc/passwd", "/usr/bin", "/usr/lib", "/dev/null")}
(breach if 1000 in owners.values() else held)("owned", owners)
