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

# Benchmarks of speed: one table each in benchmarks/results/, hours on two cores; run them on an idle machine. The long
# trainings (moses, qm9, pairs, properties) and gpu are started by hand.
SPEED := train_step projection ragged tokenize_cells tokenize_spectra tokenize_molecules tokenize_points embed \
    generation loader scaling

bench: $(VENV)/.installed-bench
	for script in $(SPEED); do $(BIN)/python benchmarks/$$script.py || exit 1; done

$(VENV)/.installed-bench: $(VENV)/.installed-test
	$(PIP_INSTALL) -e ".[bench,ray]"
	$(PIP_INSTALL) --no-deps scgpt==0.2.4
	touch $@

clean:
	rm -rf $(VENV) build dist runs
