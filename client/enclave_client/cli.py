"""The `enclave` command. Each subcommand lives in its own module of `commands`, imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import click

COMMANDS = {
    "up": "Start a whole fleet on this machine.",
    "run": "Run code in a sandbox, live.",
    "top": "Watch a fleet: workers, queue, rates, latencies.",
    "keys": "Make API keys and shared secrets.",
    "doctor": "Say whether sandboxes can run here, and what to mend.",
    "bench": "Measure a fleet on this machine.",
}


class LazyGroup(click.Group):
    """A group that imports a subcommand when somebody asks for it: `enclave run` need not pay for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help text."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one subcommand; None if there is no such."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"enclave_client.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="enclave", prog_name="enclave")
def main() -> None:
    """Run code that nobody has reviewed, in fresh kernel-isolated sandboxes.

    Every option can also be given as an environment variable: --port as ENCLAVE_PORT.
    """
    # Python has None for a stream that was closed (`>&-`): whoever did that wants nothing of it.
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end


if __name__ == "__main__":
    main()
