# attempts: keep every processor busy, in children, at the best priority there is
# layer: deadline; CPU share where there are cgroups
# category: resources
# outcomes: DEADLINE_EXCEEDED CPU_LIMIT_EXCEEDED
# evidence: spinning
# host: unchanged, others served
# limits: {"deadlineMs": 1500}
for _ in range(3):
    os.fork()
if os.getpid() == 1:
    held("spinning")
while True:
    sum(range(10**7))
