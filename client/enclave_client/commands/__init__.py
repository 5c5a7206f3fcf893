"""The subcommands of `enclave`; every module has one `command`."""
