# attempts: threads without end, with stacks as large as they may be
# layer: process limit; address space
# category: resources
# outcomes: OK PROCESS_LIMIT_EXCEEDED MEMORY_LIMIT_EXCEEDED
# evidence: threads, small stacks
# host: unchanged, others served
import threading

forever = threading.Event()


def start():
    thread = threading.Thread(target=forever.wait, daemon=True)
    thread.start()


threading.stack_size(64 << 20)
stops("threads", start, 2000)
threading.stack_size(32 << 10)
stops("small stacks", start, 2000)
