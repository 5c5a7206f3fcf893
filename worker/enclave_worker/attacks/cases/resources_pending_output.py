# attempts: leave full pipes and a deaf reader behind, and return at once
# layer: bounded draining
# category: resources
# outcomes: OK
# evidence: children write on
# host: unchanged
held("children write on")
for _ in range(4):
    if os.fork() == 0:
        while True:
            os.write(1, b"after the end " * 1000)
return 1
