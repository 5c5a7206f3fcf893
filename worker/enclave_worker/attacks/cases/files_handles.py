# attempts: open host files by guessed file handles (the Shocker attack)
# layer: system call filter; no capabilities
# category: files
# outcomes: OK
# evidence: handle of the root, open by handle
# host: unchanged
import struct

mount_id = ctypes.c_int()
room = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
refused("handle of the root", lambda: call("name_to_handle_at", -100, b"/", room, ctypes.byref(mount_id), 0), *FILTERED)
root = os.open("/usr/bin", os.O_RDONLY)
for inode in (1, 2, 128):
    handle = ctypes.create_string_buffer(struct.pack("IiII", 8, 1, inode, 0))
    refused("open by handle", lambda: call("open_by_handle_at", root, handle, os.O_RDONLY), *FILTERED)
