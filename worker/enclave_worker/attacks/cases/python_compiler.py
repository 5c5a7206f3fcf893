# attempts: crash or stall the compiler and the parsers in reach: nesting, constants, regular expressions, pickles
# layer: they run inside the sandbox
# category: python level
# outcomes: OK
# evidence: nesting, constants, expressions, literals, marshal
# host: unchanged
import marshal
import pickle
import signal


def survive(name, action):
    def limited():
        signal.alarm(2)
        try:
            action()
        except BaseException:
            pass

    status = in_child(limited)
    held(name, f"wait status {status}")


survive("nesting", lambda: compile("(" * 5000 + ")" * 5000, "x", "eval"))
survive("nesting", lambda: compile("-" * 200_000 + "1", "x", "eval"))
survive("constants", lambda: compile("9" * 1_000_000 + "**9999999", "x", "eval"))
survive("expressions", lambda: __import__("re").match(r"(a+)+$", "a" * 60 + "b"))
survive("literals", lambda: __import__("ast").literal_eval("[" * 100_000))
survive("marshal", lambda: marshal.loads(b"\xe3" + bytes(100)))
survive("marshal", lambda: pickle.loads(b"\x80\x04cos\nabort\n)R."))
