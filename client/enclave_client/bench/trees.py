"""Another commit's source tree, and an interpreter that runs its programs instead of ours.

Theory of operation. The tree comes out of `git archive`, so the repository is only read: nothing in it has to be mended
if this process is killed. Its interpreter is a virtual environment without a copy of anything: a path file in it names
the packages of that tree, and then our own environment's for all that both depend on, where path files are not read
again, so ours does not lead to our tree. Only if that commit wants something that this one does not, it gets its
dependencies installed. Everything is below one directory, whose owner removes it.
"""

from __future__ import annotations

import compileall
import dataclasses
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[3]
"""Of our own source tree."""
PACKAGES = ("protocol", "worker", "broker", "client")
_EXTRAS = ("broker", "javascript")
_WHERE = """
import importlib
for name in ("enclave_protocol", "enclave_worker", "enclave_broker", "enclave_client"):
    print(importlib.import_module(name).__file__)
"""


class TreeError(Exception):
    """There is no such tree, or it cannot run here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """A version of the programs."""

    name: str
    """As whoever compares knows it."""
    commit: str
    """Its hash; with a `+` if it has changes that are in no commit."""
    python: str
    """The interpreter that runs it."""


def working_tree() -> Tree:
    """Return what we are ourselves; raises TreeError if that is no checkout."""
    commit = git("rev-parse", "--short=12", "HEAD").decode().strip()
    changed = git("status", "--porcelain", "--untracked-files=no")
    return Tree(name="working tree", commit=f"{commit}+" if changed else commit, python=sys.executable)


def other_tree(ref: str, directory: Path) -> Tree:
    """Check out a commit, without the repository taking note, and return it.

    Args:
        ref: whatever git takes for one.
        directory: to be made, for the tree and its environment.

    Raises:
        TreeError: there is no such commit, it does not say what it depends on, or that could not be installed.
    """
    commit = git("rev-parse", "--verify", "--short=12", "--end-of-options", f"{ref}^{{commit}}").decode().strip()
    tree, environment = directory / "tree", directory / "venv"
    tree.mkdir(parents=True)
    _run("tar", "-x", "-C", str(tree), given=git("archive", "--format=tar", commit))
    missing = requirements(tree / "pyproject.toml") - requirements(ROOT / "pyproject.toml")
    venv.create(environment, symlinks=True, with_pip=bool(missing))
    python = str(environment / "bin" / "python")
    paths = [str(tree / name) for name in PACKAGES]
    if missing:
        _run(python, "-m", "pip", "install", "--quiet", *sorted(requirements(tree / "pyproject.toml")))
    else:
        paths += dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    # What has compiled its modules itself is larger afterwards, and so is every sandbox that is forked from it. Some
    # files are no modules, and are not compiled.
    for name in PACKAGES:
        compileall.compile_dir(tree / name, quiet=2)
    site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
    (site_packages / "enclave-tree.pth").write_text("".join(f"{path}\n" for path in paths))
    _check(python, tree)
    return Tree(name=ref, commit=commit, python=python)


def requirements(project: Path) -> set[str]:
    """Return what a tree's programs depend on, as its `pyproject.toml` says it; raises TreeError if it does not."""
    try:
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        needed = table["dependencies"]
    except FileNotFoundError:
        raise TreeError("that commit has no pyproject.toml, so nobody knows what its programs depend on") from None
    except KeyError as error:
        raise TreeError(f"that commit's pyproject.toml does not say what its programs depend on: no {error}") from None
    except ValueError as error:  # no TOML, or no text
        raise TreeError(f"that commit's pyproject.toml cannot be read: {error}") from error
    extras = table.get("optional-dependencies", {})
    return {*needed, *(each for name in _EXTRAS for each in extras.get(name, []))}


def git(*arguments: str) -> bytes:
    """Ask git about our repository; raises TreeError with its words."""
    return _run("git", "-C", str(ROOT), *arguments)


def _check(python: str, tree: Path) -> None:
    """Let the interpreter say where it found the packages: measuring ourselves twice would look like no change."""
    found = _run(python, "-P", "-c", _WHERE).decode().splitlines()
    strangers = [path for path in found if not Path(path).is_relative_to(tree)]
    if strangers:
        raise TreeError(f"that commit's programs would import {strangers[0]}, which is not its own")


def _run(*command: str, given: bytes = b"") -> bytes:
    try:
        return subprocess.run(command, input=given, check=True, capture_output=True).stdout  # noqa: S603 - git, pip, python
    except FileNotFoundError as error:
        raise TreeError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise TreeError(error.stderr.decode(errors="replace").strip() or f"{command[0]} failed") from error
