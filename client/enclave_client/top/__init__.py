"""`enclave top`: a live view of a fleet.

`source` asks a broker, `sample` turns two answers into rates and latencies, `frame` turns those into lines of text, and
`screen` shows the lines. All but the first and the last are pure.
"""
