# attempts: frames that no driver sends: events, packets of the zygote's protocol, deep and wide ones, nothing at all
# layer: frames checked and bounded
# category: control socket
# outcomes: GUEST_CRASHED
# evidence: sent
# host: unchanged
import json

held("sent")
for message in (
    b'{"type":"spawned","id":1}',
    b'{"type":"exited","id":1,"status":0}',
    b'{"type":"final"}',
    b"null",
    b"[]",
    b"",
):
    os.write(3, len(message).to_bytes(4, "big") + message)
time.sleep(1000)
