# Nothing here ever ends. The session's deadline (one second in the demo) ends it, from outside.
print("spinning", end="")
while True:
    pass
