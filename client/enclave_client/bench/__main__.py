"""`python -m enclave_client.bench`, which `make bench` runs."""

from enclave_client.commands.bench import command

command(prog_name="enclave bench")
