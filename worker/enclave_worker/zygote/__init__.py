"""What runs inside the zygote and inside every sandbox.

These modules import only the standard library, and little of it: a sandbox is a copy of the process that loads them.
"""
