# Each target does all its set-up: a virtual environment in .venv, a pinned install, the built-in model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DOCS := .venv-docs
LLAMA := .venv-llama
LLAMA_VERSION := $(shell sed -n 's/^llama-cpp-python==//p' constraints.txt)
WHEELS ?= $(or $(FADER_CACHE),$(HOME)/.cache/fader)/wheels

.PHONY: install model demo serve test test-wheel test-llama quick coverage check docs clean

install: $(VENV)/.installed

# what pip says goes into a file, and is shown only where it fails
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): some minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -c constraints.txt torch > $(VENV)/pip.log 2>&1 \
		&& $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,train,data,eval,rewards,server,json]' >> $(VENV)/pip.log 2>&1 \
		|| { cat $(VENV)/pip.log; exit 1; }
	@touch $@

model: install
	@$(BIN)/fader models --fetch > /dev/null

demo: model
	@HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error $(BIN)/python examples/demo.py

# OpenAI's API on the built-in model, at http://127.0.0.1:8000/v1
serve: model
	@$(BIN)/fader serve

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

# the wheel, in an environment with nothing else; some minutes
test-wheel: model
	$(BIN)/python tests/wheel.py

# the laws on llama.cpp, in an environment of its own; it is compiled once (needs a C++ compiler, 20
# minutes on one core), and the wheel kept in the user's cache
test-llama: $(LLAMA)/.installed
	@$(LLAMA)/bin/fader models --fetch > /dev/null
	OMP_NUM_THREADS=1 $(LLAMA)/bin/python -m pytest -p no:cacheprovider --long tests/test_llama.py

$(LLAMA)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(LLAMA): a long while, once"
	@$(PYTHON) -m venv $(LLAMA)
	@mkdir -p $(WHEELS)
	@ls $(WHEELS)/llama_cpp_python-$(LLAMA_VERSION)-*.whl > $(LLAMA)/pip.log 2>&1 \
		|| $(LLAMA)/bin/python -m pip wheel --quiet --no-deps -w $(WHEELS) llama-cpp-python==$(LLAMA_VERSION) >> $(LLAMA)/pip.log 2>&1 \
		|| { cat $(LLAMA)/pip.log; exit 1; }
	@$(LLAMA)/bin/python -m pip install --quiet -c constraints.txt torch >> $(LLAMA)/pip.log 2>&1 \
		&& $(LLAMA)/bin/python -m pip install --quiet -c constraints.txt --find-links $(WHEELS) -e '.[llama,dev,rewards,json,data]' >> $(LLAMA)/pip.log 2>&1 \
		|| { cat $(LLAMA)/pip.log; exit 1; }
	@touch $@

# the site in site/: strict, links checked, and nothing in it that is fetched from elsewhere
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet
	! grep -rlE '<(script|link|img|iframe)[^>]+(src|href)="(https?:)?//' site --include=*.html

$(DOCS)/.installed: constraints.txt
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet -c constraints.txt mkdocs-material mkdocstrings-python > $(DOCS)/pip.log 2>&1 \
		|| { cat $(DOCS)/pip.log; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) $(DOCS) $(LLAMA) site build dist .mypy_cache .ruff_cache .pytest_cache
