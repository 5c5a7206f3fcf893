# attempts: find a second identity in the id maps, and one that the host knows
# layer: user namespace of one id
# category: identity
# outcomes: OK
# evidence: users, groups, further groups, changing what the root is made of
# host: unchanged
for name in ("users", "groups"):
    lines = own_text(f"/proc/self/{name[0]}id_map").split("\n")
    rows = [line.split() for line in lines if line]
    (held if len(rows) == 1 and rows[0][0] == "1000" and rows[0][2] == "1" else breach)(name, rows)
(held if set(os.getgroups()) <= {1000, 65534} else breach)("further groups", os.getgroups())
# Made by the worker's own user: where that is ours too, only the read-only mount is in the way.
for path in ("/", "/etc", "/etc/passwd", "/etc/hosts"):
    refused("changing what the root is made of", lambda: os.chmod(path, 0o777), "EROFS", "EPERM")
