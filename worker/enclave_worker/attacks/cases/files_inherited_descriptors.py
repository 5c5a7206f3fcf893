# attempts: find descriptors that the host let slip, and open anew through /proc what is behind our own
# layer: close_range before the guest
# category: files
# outcomes: OK
# evidence: descriptors, directory behind one, first process's descriptors, reopened control, fdinfo
# host: unchanged
import stat

kinds = {}
for fd in range(4096):
    try:
        kinds[fd] = stat.S_IFMT(os.fstat(fd).st_mode)
    except OSError:
        continue
extra = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in kinds if fd > 3}
extra = {fd: link for fd, link in extra.items() if "eventpoll" not in link and "socket" not in link}
expected = [stat.S_IFCHR, stat.S_IFIFO, stat.S_IFIFO, stat.S_IFSOCK]
if extra or [kinds.get(fd) for fd in range(4)] != expected:
    breach("descriptors", f"{extra} {kinds}")
else:
    held("descriptors", "0 to 3 only")
if any(kind in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFBLK) for kind in kinds.values()):
    breach("directory behind one", kinds)
else:
    held("directory behind one", "none is a file or directory")


def through_first():
    for fd in range(64):
        try:
            print(open(f"/proc/1/fd/{fd}/../../..{HOST['secret_files'][0]}").read())
        except OSError as error:
            last = error
    raise last


in_child(lambda: refused("first process's descriptors", through_first))
refused("reopened control", lambda: os.open("/proc/self/fd/3", os.O_RDWR))
text = own_text("/proc/self/fdinfo/3")
if "ino:" in text and HOST["directories"][0] in text:
    breach("fdinfo", text)
else:
    held("fdinfo")
