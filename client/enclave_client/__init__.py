"""Enclave's client side: a small HTTP client for a broker, a whole fleet on one machine, and the `enclave` command."""
