# attempts: read the host's keys, which no namespace hides: by name, number, keyring and request
# layer: session keyring; system call filter
# category: kernel
# outcomes: OK
# evidence: by name, by number, own keyrings, user keyrings, add, request, lists, persistent
# host: unchanged
SEARCH, READ, DESCRIBE, GET_KEYRING, JOIN, PERSISTENT = 10, 11, 6, 0, 1, 22
room = ctypes.create_string_buffer(4096)
name = HOST["key_name"].encode()
for ring in (-1, -2, -3, -4, -5):
    refused("own keyrings", lambda: call("keyctl", GET_KEYRING, ring, 0, 0, 0), *FILTERED)
    refused("by name", lambda: call("keyctl", SEARCH, ring, b"user", name, 0), *FILTERED)
    refused("user keyrings", lambda: call("keyctl", DESCRIBE, ring, room, 4096, 0), *FILTERED)
refused("by number", lambda: call("keyctl", READ, HOST["key"], room, 4096, 0), *FILTERED)
refused("add", lambda: call("add_key", b"user", b"planted", b"x", 1, -3), *FILTERED)
refused("request", lambda: call("request_key", b"user", name, 0, -3), *FILTERED)
refused("user keyrings", lambda: call("keyctl", JOIN, b"_uid.0", 0, 0, 0), *FILTERED)
refused("persistent", lambda: call("keyctl", PERSISTENT, -1, -3, 0, 0), *FILTERED)
for path in ("/proc/keys", "/proc/key-users", "/proc/sys/kernel/keys"):
    refused("lists", lambda: os.open(path, os.O_RDONLY), "ENOENT")
