"""Attacks on this worker's own sandbox: a corpus of cases as data, what judges them, and what runs them.

`cases/` holds the attacks, `corpus` reads them, `host` plants what they must not reach, `runner` runs them on a real
worker, `judge` says what each run means. `enclave doctor --attack` prints it.
"""
