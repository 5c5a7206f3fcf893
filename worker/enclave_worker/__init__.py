"""A worker: a WebSocket server that runs each session's code in a fresh kernel-isolated sandbox.

Kept empty of imports on purpose: the zygote, which every sandbox is a copy of, imports modules of this package, and
what it imports every session pays for. The library's names live in `enclave_worker.api`.
"""
