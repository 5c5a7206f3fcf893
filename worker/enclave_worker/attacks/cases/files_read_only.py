# attempts: change what is bound from the host: contents, names, modes, times, attributes
# layer: read-only mounts
# category: files
# outcomes: OK
# evidence: create, unlink, rename, replace, chmod, times, xattr, truncate, mkdir, root, etc, devices
# host: unchanged
REFUSED = ("EROFS", "EACCES", "EPERM", "EXDEV", "ENOTSUP")
library = os.path.dirname(os.__file__)
program = os.path.realpath("/bin/sh")
for directory in (library, "/usr/bin", "/usr/lib"):
    refused("create", lambda: os.open(f"{directory}/planted.py", os.O_CREAT | os.O_WRONLY), *REFUSED)
    refused("mkdir", lambda: os.mkdir(f"{directory}/planted"), *REFUSED)
refused("unlink", lambda: os.unlink(f"{library}/this.py"), *REFUSED)
refused("rename", lambda: os.rename(f"{library}/this.py", f"{library}/that.py"), *REFUSED)
open("/tmp/other", "w").close()
refused("replace", lambda: os.rename("/tmp/other", f"{library}/this.py"), *REFUSED)
for path in (f"{library}/this.py", program):
    refused("chmod", lambda: os.chmod(path, 0o777), *REFUSED)
    refused("times", lambda: os.utime(path, (0, 0)), *REFUSED)
    refused("truncate", lambda: os.truncate(path, 0), *REFUSED, "ETXTBSY")
    for attribute in ("user.x", "trusted.x", "security.capability"):
        refused("xattr", lambda: os.setxattr(path, attribute, b"x"), *REFUSED)
for name in ("root", "etc"):
    directory = "/" if name == "root" else "/etc"
    refused(name, lambda: os.open(f"{directory}/planted", os.O_CREAT | os.O_WRONLY), *REFUSED)
refused("etc", lambda: open("/etc/passwd", "a"), *REFUSED)
for change in (lambda: os.unlink("/dev/null"), lambda: os.mkdir("/dev/planted"), lambda: os.chmod("/dev/null", 0)):
    refused("devices", change, *REFUSED, "EBUSY")
