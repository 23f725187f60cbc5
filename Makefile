# Every target sets itself up: a .venv in the checkout, the versions of constraints.txt. Needs Python >= 3.11 and make.
PYTHON ?= python3
ROUNDS ?= 50
BIN := .venv/bin

.PHONY: setup demo test check bench chaos clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("sched-lab needs Python 3.11 or later, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/sched-lab submit sweeps/quickstart.yaml
	$(BIN)/sched-lab report quickstart

# The slow ones start processes of their own on all cores.
test: setup
	$(BIN)/pytest -m "not slow" -n 2
	$(BIN)/pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m tests.benchmarks

chaos: setup
	$(BIN)/python -m tests.chaos --rounds $(ROUNDS)

clean:
	rm -rf .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
