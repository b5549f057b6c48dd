# Each target does all its set-up: a virtual environment in .venv, a pinned install, the built-in model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DOCS := .venv-docs
CLIENTS := .venv-clients

.PHONY: install model demo serve test test-wheel test-clients quick coverage check docs clean

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

# other people's clients against a server; some minutes to install
test-clients: install $(CLIENTS)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --long tests/test_clients.py

$(CLIENTS)/.installed: constraints.txt
	@echo "Installing into $(CLIENTS): some minutes, once"
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install --quiet -c constraints.txt 'lm_eval[api]' llm litellm langchain-openai > $(CLIENTS)/pip.log 2>&1 \
		|| { cat $(CLIENTS)/pip.log; exit 1; }
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
	rm -rf $(VENV) $(DOCS) $(CLIENTS) site build dist .mypy_cache .ruff_cache .pytest_cache
