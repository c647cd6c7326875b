# consilience: `make demo` runs the quick study, `make test` the tests, `make lint` the checks.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint env bench clean

demo: $(VENV)/.installed
	$(BIN)/consilience study --preset quick --out runs/demo

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

env: $(VENV)/.installed-test $(VENV)/.installed-lint

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first: its pinned build is then kept by everything that depends on it.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) "$(shell grep -m1 '^torch==' constraints.txt)"
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP_INSTALL) -e ".[test]"
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(PIP_INSTALL) -e ".[lint]"
	touch $@

# Every benchmark but moses.py (a day of training, in parts), pairs.py (it takes a trained run) and gpu.py, one table
# each in benchmarks/results/; hours on two cores, run it on an idle machine.
bench: $(VENV)/.installed-bench
	for script in $$(cd benchmarks && ls [a-z]*.py | grep -v -e harness.py -e gpu.py -e moses.py -e pairs.py); do \
	    $(BIN)/python benchmarks/$$script || exit 1; done

$(VENV)/.installed-bench: $(VENV)/.installed-test
	$(PIP_INSTALL) -e ".[bench,ray]"
	$(PIP_INSTALL) --no-deps scgpt==0.2.4
	touch $@

clean:
	rm -rf $(VENV) build dist runs
