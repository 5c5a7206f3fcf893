# attempts: use up the epoll watches that the kernel allows the host user, by many processes
# layer: process and open file limits
# category: resources
# outcomes: OK MEMORY_LIMIT_EXCEEDED PROCESS_LIMIT_EXCEEDED
# evidence: watches
# host: unchanged, others served
import select

reader, writer = os.pipe()


def watch():
    # Every poll watches every copy: half of the descriptors each is the most watches there can be.
    copies = [os.dup(reader) for _ in range(120)]
    polls = []
    made = 0
    try:
        while True:
            polls.append(select.epoll())
            for copy in copies:
                polls[-1].register(copy, select.EPOLLIN)
                made += 1
    except OSError as error:
        return f"{made} {errno.errorcode[error.errno]}"


tell_reader, tell_writer = os.pipe()
count = 0
try:
    while count < 16:
        if os.fork() == 0:
            os.write(tell_writer, watch().encode() + b"\n")
            time.sleep(1000)
        count += 1
except OSError:
    pass
said = b""
while said.count(b"\n") < count:
    said += os.read(tell_reader, 4096)
total = sum(int(line.split()[0]) for line in said.decode().splitlines())
held("watches", f"{total}, then {sorted(set(said.decode().split()[1::2]))}")
time.sleep(1)
return total
