# attempts: gain by setuid programs: the host's, and a copy of our own with the bit set
# layer: no_new_privs; nosuid
# category: files
# outcomes: OK
# evidence: own copy, the host's, file capabilities
# host: unchanged
import shutil
import stat
import subprocess

program = shutil.which("id") or "/usr/bin/id"
shutil.copy(program, "/tmp/id")
os.chmod("/tmp/id", 0o6755)
uids = {subprocess.run([path, "-u"], capture_output=True, text=True).stdout.strip() for path in (program, "/tmp/id")}
held("own copy") if uids == {str(os.getuid())} else breach("own copy", uids)
found = []
for directory in ("/usr/bin", "/usr/lib", "/bin"):
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        try:
            if os.stat(path).st_mode & stat.S_ISUID and os.path.isfile(path):
                found.append(path)
        except OSError:
            continue
# A setuid program that ran as somebody else would show as such in its own status, which it could then not keep from us.
for path in found[:10]:
    child = subprocess.Popen([path, "--help"], stdin=-3, stdout=-3, stderr=-3)
    status = own_text(f"/proc/{child.pid}/status")
    child.kill()
    child.wait()
    if any(line.split()[1:] != ["1000"] * 4 for line in status.splitlines() if line.startswith("Uid:")):
        breach("the host's", path)
held("the host's", f"{len(found)} tried")
refused(
    "file capabilities",
    lambda: os.setxattr("/tmp/id", "security.capability", bytes.fromhex("0100000200002000" + "00" * 12)),
)
