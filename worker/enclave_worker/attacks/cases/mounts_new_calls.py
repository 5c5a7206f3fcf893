# attempts: the same by the new mount calls: file system contexts, cloned trees, attributes
# layer: system call filter
# category: kernel
# outcomes: OK
# evidence: fsopen, fsconfig, fsmount, fspick, open_tree, move_mount, mount_setattr, statmount, listmount
# host: unchanged
import struct

refused("fsopen", lambda: call("fsopen", b"tmpfs", 0), *FILTERED)
refused("fsconfig", lambda: call("fsconfig", 3, 6, 0, 0, 0), *FILTERED)
refused("fsmount", lambda: call("fsmount", 3, 0, 0), *FILTERED)
refused("fspick", lambda: call("fspick", -100, b"/", 0), *FILTERED)
refused("open_tree", lambda: call("open_tree", -100, b"/usr/bin", 1), *FILTERED)
refused("move_mount", lambda: call("move_mount", -100, b"/proc", -100, b"/tmp", 0), *FILTERED)
# Take "read-only" away from everything.
attributes = struct.pack("QQQQ", 0, 1, 0, 0)
refused("mount_setattr", lambda: call("mount_setattr", -100, b"/", 0x8000, attributes, 32), *FILTERED)
request = ctypes.create_string_buffer(struct.pack("IIQQQ", 32, 0, 0xFFFFFFFFFFFFFFFF, 0, 0))
room = ctypes.create_string_buffer(4096)
refused("statmount", lambda: call("statmount", request, room, 4096, 0), *FILTERED)
refused("listmount", lambda: call("listmount", request, room, 512, 0), *FILTERED)
