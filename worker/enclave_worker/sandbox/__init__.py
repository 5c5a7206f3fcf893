"""What a sandbox is (`spec`), the ordered steps that make one (`plan`) and its system call filter (`seccomp`).

All of it is data: `enclave_worker.zygote.steps` performs it.
"""
