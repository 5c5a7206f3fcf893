# attempts: let a child answer for us while we go on, and answer again ourselves
# layer: the first verdict stands
# category: control socket
# outcomes: OK
# evidence: two answers
# host: unchanged
held("two answers")
if os.fork() == 0:
    body = b'{"type":"result","value":"from a child"}'
    for _ in range(100):
        os.write(3, len(body).to_bytes(4, "big") + body)
    os._exit(0)
return "from the first process"
