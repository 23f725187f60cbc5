# Every target sets itself up in .venv, with the versions of constraints.txt. Needs Python >= 3.11 and make.
PYTHON ?= python3
ROUNDS ?= 50
BIN := .venv/bin
PIP := $(BIN)/pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: setup demo test check docs reference bench chaos clean

setup: .venv/installed-dev

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("sched-lab needs Python 3.11 or later, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	@echo "installing what sched-lab needs into .venv: about 2 minutes, most of it torch, MLflow and Ray …"
	@$(PYTHON) -m venv .venv
	@$(PIP) -e .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "installing what tests, checks and docs need beside it: about half a minute …"
	@$(PIP) -e '.[dev]'
	@touch $@

demo: .venv/installed
	$(BIN)/sched-lab submit sweeps/quickstart.yaml
	$(BIN)/sched-lab report quickstart

# The slow ones start processes of their own on all cores.
test: setup
	$(BIN)/pytest -m "not slow" -n 2
	$(BIN)/pytest -m slow -n 2 --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	$(BIN)/mkdocs build --strict

# The tables of settings and schedules that the pages hold.
reference: setup
	$(BIN)/python docs/hooks.py

bench: setup
	$(BIN)/python -m tests.benchmarks

chaos: setup
	$(BIN)/python -m tests.chaos --rounds $(ROUNDS)

clean:
	rm -rf .venv build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
