# attempts: announce four gibibytes, and deliver as much of it as is taken
# layer: frames checked and bounded
# category: control socket
# outcomes: GUEST_CRASHED RESULT_TOO_LARGE
# evidence: announced
# host: unchanged, others served
held("announced")
os.write(3, b"\xff\xff\xff\xff")
try:
    while True:
        os.write(3, bytes(1 << 20))
except OSError:
    time.sleep(1000)
