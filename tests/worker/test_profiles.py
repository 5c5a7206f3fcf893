"""Profiles as data: what a file may say, what is made of it, and a worker that does not start with a bad one."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enclave_worker import packages
from enclave_worker.config import RuntimeConfig
from enclave_worker.footing import Footing, find_footing
from enclave_worker.offers import Offer
from enclave_worker.profiles import SHIPPED, Profile, ProfileError, load_profiles, read_profiles
from enclave_worker.sandbox.levels import LEVELS, Layer
from tests.support import PATIENCE_S, complaints
from tests.worker.profile_files import write

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024
START_A_THREAD = "import threading\nthreading.Thread(target=threading.Event().wait).start()"


def test_the_shipped_ones_are_the_lean_and_the_data_profile() -> None:
    shipped = read_profiles(SHIPPED)

    assert set(shipped) == {"python", "python-data"}
    assert shipped["python"].packages == ()
    assert shipped["python"].bare
    assert set(shipped["python-data"].packages) == {"numpy", "pandas", "matplotlib"}


def test_without_a_choice_a_worker_offers_python_and_what_its_file_has(tmp_path: Path) -> None:
    assert set(load_profiles()) == {"python"}
    assert set(load_profiles(file=write(tmp_path, "[profiles.mine]"))) == {"python", "mine"}
    assert set(load_profiles(["mine"], write(tmp_path, "[profiles.mine]\n[profiles.other]"))) == {"mine"}
    assert set(load_profiles(["python-data", "python"])) == {"python-data", "python"}


def test_a_profile_of_the_file_replaces_the_shipped_one_as_a_whole(tmp_path: Path) -> None:
    own = load_profiles(file=write(tmp_path, "[profiles.python]\npool_size = 7"))["python"]

    assert own == Profile(name="python", pool_size=7)


def test_every_field_is_read(tmp_path: Path) -> None:
    text = """
[profiles.all]
languages = ["shell", "python"]
preload = ["json", "os.path"]
bare = true
packages = ["numpy"]
limits = { deadlineMs = 5 }
memory_limit_bytes = 100_000_000
spare_address_bytes = 200_000_000
processes = 9
cpus = 0.5
cpu_time_ms = 700
open_files = 99
disk_bytes = 2_000_000
level = "STRICT"
pool_size = 3
env = { A = "b" }
allow_env = ["X", "APP_*"]
"""
    profile = read_profiles(Path(write(tmp_path, text)))["all"]

    assert profile == Profile(
        name="all",
        languages=("shell", "python"),
        preload=("json", "os.path"),
        bare=True,
        packages=("numpy",),
        limits={"deadlineMs": 5},
        memory_limit_bytes=100_000_000,
        spare_address_bytes=200_000_000,
        processes=9,
        cpus=0.5,
        cpu_time_ms=700,
        open_files=99,
        disk_bytes=2_000_000,
        level="STRICT",
        pool_size=3,
        env={"A": "b"},
        allow_env=("X", "APP_*"),
    )


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ("colour = 1", ["colour", "unknown field", "preload, bare, packages"]),
        ('name = "x"', ["name", "[profiles.mine]"]),
        ("pool_size = -1", ["pool_size", "0 to 10000"]),
        ('pool_size = "4"', ["pool_size", "0 to 10000"]),
        ("preload = 'json'", ["preload", "a list of module names"]),
        ("preload = ['json; import os']", ["preload", "json; import os", "a list of module names"]),
        ("languages = ['ruby']", ["languages", "python, javascript, shell"]),
        ("languages = []", ["languages", "not empty"]),
        ('level = "PARANOID"', ["level", "STRICT, SECURE, STANDARD, PERMISSIVE"]),
        ("memory_limit_bytes = 5", ["memory_limit_bytes", str(64 * MIB)]),
        ("spare_address_bytes = -1", ["spare_address_bytes", "0 or more"]),
        ("cpus = 'all'", ["cpus", "a number, 0 or more"]),
        ("limits = { cpuTimeMs = 5 }", ["limits.cpuTimeMs", "cpu_time_ms"]),
        ("limits = { memory = 1 }", ["limits.memory", "maxToolCalls"]),
        ("limits = { maxToolCalls = 0 }", ["limits.maxToolCalls", "above 0"]),
        ("limits = { memoryLimitBytes = 100000000 }", ["limits.memoryLimitBytes", "memory_limit_bytes"]),
        ("env = { 1A = 'x' }", ["env.1A", "letters"]),
        ("env = { A = 1 }", ["env", "a table of texts"]),
        ("allow_env = ['A*B']", ["allow_env", "A*B", "APP_*"]),
        ("packages = ['numpy']\npackages_dir = 'lib'", ["packages_dir", "one of the two"]),
    ],
)
def test_a_bad_field_is_named_with_its_file_its_profile_and_what_is_allowed(
    tmp_path: Path, table: str, parts: list[str]
) -> None:
    file = write(tmp_path, f"[profiles.mine]\n{table}")

    with pytest.raises(ProfileError) as caught:
        read_profiles(Path(file))

    for part in (file, "'mine'", "allowed: ", *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[profiles", "not TOML"),
        ("", "no profile in it"),
        ("[python]\n", "unknown table 'python'"),
        ("profiles = 1", "no profile in it"),
        ("[profiles]\nmine = 1", "not a table"),
        ('[profiles."a b"]', "not a name"),
    ],
)
def test_a_file_that_is_none_of_profiles_says_so(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ProfileError, match=part):
        read_profiles(Path(write(tmp_path, text)))


def test_a_name_that_is_no_profile_is_answered_by_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"no profile 'nope' \(allowed: mine, python, python-data"):
        load_profiles(["nope"], write(tmp_path, "[profiles.mine]"))


def test_only_names_and_beginnings_that_are_allowed_may_be_set() -> None:
    profile = Profile(name="p", allow_env=("TZ", "APP_*"))

    assert [name for name in ("TZ", "TZX", "APP_", "APP_A", "XAPP_A", "tz") if profile.allows_env(name)] == [
        "TZ",
        "APP_",
        "APP_A",
    ]
    assert Profile(name="p").allows_env("ANY")
    assert not Profile(name="p", allow_env=()).allows_env("ANY")


@pytest.fixture
def footing() -> Iterator[Footing]:
    """What this machine gives."""
    found = find_footing(RuntimeConfig(level="BEST"))
    yield found
    found.close()


def test_what_a_profile_does_not_say_the_options_say_and_else_the_level(footing: Footing) -> None:
    config = RuntimeConfig(processes=9, cpus=0.25)
    level = footing.level.resources

    plain = Offer.of(Profile(name="p"), footing, config).footing.resources
    assert (plain.memory_limit_bytes, plain.processes, plain.cpus) == (level.memory_limit_bytes, 9, 0.25)
    own = Profile(name="p", processes=5, memory_limit_bytes=100 * MIB, disk_bytes=7 * MIB)
    changed = Offer.of(own, footing, config).footing.resources
    assert (changed.memory_limit_bytes, changed.processes, changed.cpus) == (100 * MIB, 5, 0.25)
    assert changed.disk_bytes == 7 * MIB


def test_spare_address_space_is_on_top_for_processes_and_for_sessions(footing: Footing) -> None:
    config = RuntimeConfig()
    plain = Offer.of(Profile(name="p"), footing, config)
    wide = Offer.of(Profile(name="p", spare_address_bytes=3 * MIB), footing, config)

    def limit(offer: Offer) -> int:
        return next(limit.soft for limit in offer.spec.rlimits if limit.name == "AS")

    assert limit(wide) - limit(plain) == 3 * MIB
    assert wide.allowance.spare_address_bytes - plain.allowance.spare_address_bytes == 3 * MIB
    assert wide.allowance.memory_bytes == plain.allowance.memory_bytes


def test_a_level_gives_a_profile_its_limits_and_needs_its_layers(footing: Footing) -> None:
    strict = Profile(name="p", level="STRICT")
    complete = dataclasses.replace(footing, lacking={})
    lacking = dataclasses.replace(footing, lacking={Layer.OWN_USER: "not started as root"})

    assert Offer.of(strict, complete, RuntimeConfig()).footing.resources == LEVELS["STRICT"].resources
    with pytest.raises(ProfileError, match=r"'p', level: STRICT requires own host user, .*: not started as root"):
        Offer.of(strict, lacking, RuntimeConfig())


def test_a_packages_files_come_with_those_of_all_that_it_requires() -> None:
    shown = {package.path.rpartition("/")[2]: package for package in packages.of_distributions(["matplotlib"])}

    assert {"matplotlib", "numpy", "PIL", "fontTools", "dateutil"} <= shown.keys()
    assert not {"pandas", "pytest", "msgspec", "..", "__pycache__"} & shown.keys()
    assert not shown["pylab.py"].directory, "a single file"
    assert all(package.path.startswith("/packages/") for package in shown.values())
    assert shown["numpy"].source == str(
        Path(str(importlib.metadata.distribution("numpy").locate_file("numpy"))).resolve()
    )


def test_a_package_that_is_not_installed_or_can_not_be_shown_is_named_with_what_to_do(
    tmp_path: Path, footing: Footing
) -> None:
    def refusal(text: str) -> str:
        profile = load_profiles(["mine"], write(tmp_path, f"[profiles.mine]\n{text}"))["mine"]
        with pytest.raises(ProfileError) as caught:
            Offer.of(profile, footing, RuntimeConfig())
        return str(caught.value)

    assert "'mine': no-such-thing is not installed" in refusal("packages = ['no-such-thing']")
    assert "pip install no-such-thing" in refusal("packages = ['no-such-thing']")
    assert "editable" in refusal("packages = ['enclave']")
    assert "is not a directory" in refusal("packages_dir = 'nowhere'")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    assert "virtual environment without python3" in refusal("packages_dir = 'venv'")


def command(*options: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "enclave_worker.cli", "--port", "0", *options]
    return subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_the_command_does_not_start_with_a_bad_file_and_says_why_in_one_line(tmp_path: Path) -> None:
    done = command("--profiles", write(tmp_path, "[profiles.mine]\npool = 1"))

    assert (done.returncode, done.stdout) == (1, "")
    assert len(complaints(done.stderr)) == 1
    assert "profile 'mine', pool: unknown field" in done.stderr


def test_the_command_does_not_start_without_the_data_packages_and_says_how_to_install_them(tmp_path: Path) -> None:
    # An interpreter that finds everything that ours does, but for numpy.
    hide = """
import importlib.metadata, sys
from enclave_worker.cli import main
found = importlib.metadata.distribution
def without_numpy(name):
    if name == "numpy":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.distribution = without_numpy
main()
"""
    script = tmp_path / "worker.py"
    script.write_text(hide)
    options = [sys.executable, str(script), "--port", "0", "--profile", "python-data"]
    done = subprocess.run(options, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'enclave[data]'" in done.stderr
    assert len(complaints(done.stderr)) == 1


@pytest.mark.parametrize(
    ("module", "source", "step", "reason"),
    [
        ("missing", "", "missing", "ModuleNotFoundError: No module named 'missing'"),
        ("broken", "1 / 0", "broken", "ZeroDivisionError: division by zero"),
        ("threaded", START_A_THREAD, "with one thread", "what is preloaded has started 1 more"),
    ],
)
def test_the_command_does_not_start_if_what_it_preloads_fails_or_starts_a_thread(
    tmp_path: Path, module: str, source: str, step: str, reason: str
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / ("other.py" if module == "missing" else f"{module}.py")).write_text(source)
    done = command("--profiles", write(tmp_path, f"[profiles.mine]\npackages_dir = 'lib'\npreload = ['{module}']"))

    assert (done.returncode, done.stdout) == (1, "")
    assert f"profile 'mine': preload {step}: {reason}" in done.stderr
    assert len(complaints(done.stderr)) == 1
