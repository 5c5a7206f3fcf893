"""`enclave bench`: what sessions cost here, beside what could be taken instead, in the same run.

It starts the real fleet by the real commands on loopback, and asks it over HTTP as any client would. `phases` measures,
`rivals` runs what we compare with, `curve` raises the load, `footprint` reads /proc, `figures` holds the arithmetic,
`report` prints, `picture` draws.
"""
