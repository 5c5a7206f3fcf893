# attempts: act after the result: finalizers, exit hooks, threads, late output, late frames
# layer: the sandbox ends with its result
# category: python level
# outcomes: OK
# evidence: armed
# host: unchanged
import atexit
import threading

held("armed")


class Final:
    def __del__(self):
        breach("armed", "a finalizer ran after the result")


keep = Final()
sys.modules["keeps_it"] = keep
atexit.register(lambda: breach("armed", "an exit hook ran"))
thread = threading.Thread(target=time.sleep, args=(1000,))
thread.start()
return 1
