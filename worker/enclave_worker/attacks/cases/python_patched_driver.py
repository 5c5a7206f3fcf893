# attempts: replace everything that the driver and the encoder call, in a session whose zygote serves another
# layer: one sandbox per session
# category: python level
# outcomes: OK
# evidence: patched, pristine
# host: unchanged
import builtins
import gc
import json

held("patched")
frame = sys._getframe()
while frame:
    for name, value in list(frame.f_globals.items()):
        if callable(value) and name.startswith(("_result", "result", "encode", "write", "_failure", "error")):
            frame.f_globals[name] = lambda *a, **k: b'{"type":"result","value":"patched"}'
    frame = frame.f_back
for value in gc.get_objects():
    if type(value).__name__ in ("JSONEncoder", "Worker"):
        try:
            value.encode = value.send = lambda *a: None
        except AttributeError:
            pass
json.dumps = builtins.repr = builtins.print = lambda *a, **k: "patched"
os.write = lambda *a: 0
os._exit(0)
# %% session
import json

(held if json.dumps([1]) == "[1]" and repr(1) == "1" else breach)("pristine")
return 42
