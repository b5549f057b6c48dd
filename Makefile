# Each target does all its set-up: a virtual environment in .venv, a pinned install, the built-in model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install model demo test quick coverage check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,train,data,eval,rewards]'
	touch $@

model: install
	$(BIN)/fader models --fetch

demo: model
	$(BIN)/python examples/demo.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# two processes run the tests: one thread for each, or they wait for one another
test: check model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --long

# the tests that need no model and take little time
quick: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not builtin"

# on its own, since counting lines costs time
coverage: model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --long --cov --cov-fail-under=80

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
