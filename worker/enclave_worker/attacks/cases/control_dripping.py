# attempts: send a frame byte by byte, each in a packet of its own, and never its end
# layer: deadline; bounded reads
# category: control socket
# outcomes: DEADLINE_EXCEEDED
# evidence: dripping
# host: unchanged, others served
# limits: {"deadlineMs": 1500}
held("dripping")
os.write(3, (1 << 19).to_bytes(4, "big") + b'{"type":"result","value":"')
while True:
    os.write(3, b"x")
    time.sleep(0.001)
