# Each target does all its set-up: a virtual environment in .venv, a pinned install, the built-in model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install model demo serve test quick coverage check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,train,data,eval,rewards,server,json]'
	touch $@

model: install
	$(BIN)/fader models --fetch

demo: model
	$(BIN)/python examples/demo.py

# OpenAI's API on the built-in model, at http://127.0.0.1:8000/v1
serve: model
	$(BIN)/fader serve

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# two processes run the tests: one thread for each, or they wait for one another
test: check model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

# the tests that need no model
quick: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not builtin"

# on its own, since counting lines costs time
coverage: model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --cov --cov-fail-under=80

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
