# `make run` and `make test` do everything on a fresh machine with Python 3.11 to 3.13.
# The README shows the plain pip and python lines that they stand for.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/digits

.PHONY: run test test-all check bench docs dist-check matrix clean

run: $(VENV)/.train
	$(BIN)/python -m experiments.main --config=configs/digits.py --workdir=$(WORKDIR)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.train
	$(BIN)/python -m experiments.benchmarks.core

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W -q docs build/docs

# A wheel and an sdist; each installs alone in an empty environment and is right there.
dist-check: $(VENV)/.train
	$(BIN)/pip install --quiet build
	rm -rf build/dist build/lib
	$(BIN)/python -m build --outdir build/dist .
	for file in build/dist/*; do \
	  rm -rf build/empty && $(PYTHON) -m venv build/empty \
	  && build/empty/bin/pip install --quiet $$file \
	  && (cd build && empty/bin/python -m sup_tickets) || exit 1; \
	done

matrix:
	.ci/matrix

clean:
	rm -rf $(VENV)

# One line instead of pip's many.
OLD = import sys; v = sys.version_info; v >= (3, 11) or sys.exit( \
  "Python 3.11 or newer is needed, and %s is %d.%d; make run PYTHON=python3.12, " \
  "for example, takes another" % (sys.executable, v[0], v[1]))

$(VENV)/.train: setup.py
	@$(PYTHON) -c '$(OLD)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e ".[train]"
	touch $@

$(VENV)/.dev: setup.py
	@$(PYTHON) -c '$(OLD)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.train

$(VENV)/.docs: setup.py | $(VENV)/.train
	$(BIN)/pip install --quiet -e ".[docs]"
	touch $@
