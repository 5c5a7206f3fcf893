# attempts: grow pipes until the user's share of pipe memory is gone
# layer: the kernel's pipe limits; open file limit
# category: resources
# outcomes: OK
# evidence: one pipe, many pipes
# host: unchanged, others served
import fcntl

reader, writer = os.pipe()
refused("one pipe", lambda: fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 28), "EPERM", "EBUSY")


def full_pipe():
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.set_blocking(writer, False)
    return os.write(writer, bytes(1 << 20))


stops("many pipes", full_pipe, 2000, "EPERM", "EMFILE")
time.sleep(0.5)
