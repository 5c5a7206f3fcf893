# Everything a newcomer needs: `make demo`, `make test`. Both make .venv first; nothing is installed outside of it.
# Choose an interpreter with `make demo PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --root-user-action=ignore

# What is typed reaches programs as it is: recipes have the shell look it up, so that neither make nor the shell takes a
# part of a branch's or file's name for a command.
VALUES := BASE NEW JSON ROUNDS SESSIONS SEED SEEDS
$(foreach name,$(VALUES),$(eval override $(name) := $$(value $(name))))
export $(VALUES)

.PHONY: help demo test lint bench bench-compare overload soak simulate chaos clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    start a broker and two workers, run samples in sandboxes, stop everything"
	@echo "make test    run all tests"
	@echo "make lint    check style and types"
	@echo "make bench   measure; SESSIONS=10000 for a longer run, JSON=FILE to keep the figures"
	@echo "make bench-compare BASE=ref  measure this tree beside another commit; NEW=ref for two others, ROUNDS=40 to be surer"
	@echo "make overload  ask a fleet for ten times what it can serve; JSON=FILE to keep the figures"
	@echo "make soak    run good and hostile sessions, 50,000 of them, and look for leaks; SESSIONS=2000 for fewer"
	@echo "make simulate  run a fleet under random schedules of faults, on a clock of its own; SEEDS=100000 for more, SEED=7 for one"
	@echo "make chaos   kill, cut, freeze and fill a fleet while 2,000 sessions run; SEED=7 for other faults; root for hosts that vanish"
	@echo "make clean   remove what the above have made"

demo: $(VENV)/.installed
	@$(BIN)/python examples/demo.py

test: $(VENV)/.test
	@$(BIN)/python -m pytest

lint: $(VENV)/.test $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.bench
	@$(BIN)/python -m enclave_client.bench --sessions "$${SESSIONS:-2000}" $${JSON:+--json="$$JSON"}

bench-compare: $(VENV)/.installed
	@test -n "$$BASE" || { echo "which commit is it to be compared with? make bench-compare BASE=main" >&2; exit 2; }
	@$(BIN)/python -m enclave_client.bench.compare $${NEW:+--new="$$NEW"} --rounds "$${ROUNDS:-20}" $${JSON:+--json="$$JSON"} -- "$$BASE"

overload: $(VENV)/.installed
	@$(BIN)/python -m enclave_client.bench.overload $${JSON:+--json="$$JSON"}

soak: $(VENV)/.installed
	@$(BIN)/python -m enclave_client.bench.soak --sessions "$${SESSIONS:-50000}"

simulate: $(VENV)/.test
	@$(BIN)/python -m tests.fleet.simulation.run --seeds "$${SEEDS:-5000}" $${SEED:+--seed="$$SEED"}

chaos: $(VENV)/.test
	@$(BIN)/python -m tests.fleet.chaos --sessions "$${SESSIONS:-2000}" $${SEED:+--seed="$$SEED"}

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Enclave needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: on Debian, apt install python3-venv" >&2; exit 1; }

# Editable, so that a change of the code needs no new installation; a change of the dependencies does.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV)"
	@$(PIP) --editable '.[all]'
	@touch $@

# Without a network there is no ipykernel to compare with, and the report says so. Tried once, since each try waits for
# the network.
$(VENV)/.bench: pyproject.toml | $(VENV)/.installed
	@$(PIP) --editable '.[all,bench]' || \
		echo "measuring without ipykernel, which could not be installed; rm $@ to have it tried again" >&2
	@touch $@

# Older pips do not know dependency groups.
$(VENV)/.pip: | $(BIN)/python
	@$(PIP) --upgrade 'pip>=25.1'
	@touch $@

# With what guests of python-data find and what some sources of tools need, which the demo can do without.
$(VENV)/.test: pyproject.toml $(VENV)/.installed | $(VENV)/.pip
	@$(PIP) --editable '.[all,bench,data,mcp,otel,yaml]' --group test
	@touch $@

$(VENV)/.lint: pyproject.toml $(VENV)/.installed | $(VENV)/.pip
	@$(PIP) --group lint
	@touch $@
