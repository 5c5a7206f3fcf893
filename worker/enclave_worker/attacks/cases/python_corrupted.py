# attempts: corrupt the interpreter itself: overwrite small integers, types and the driver's code by raw memory
# layer: one sandbox per session
# category: python level
# outcomes: OK GUEST_CRASHED EXECUTION_ERROR
# evidence: corrupted, sound
# host: unchanged
held("corrupted")
# The value of the integer 7, and the name of `str`: shared with the zygote until the moment they are written to.
ctypes.c_uint32.from_address(id(7) + 24).value = 8
ctypes.memset(id(str) + 16, 0, 64)
os.fork()
"".join(["a", "b"])
# %% session
(held if 3 + 4 == 7 and int("7") - 7 == 0 and "".join(["a"]) == "a" else breach)("sound")
