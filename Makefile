# `make demo` runs the whole of Trierarch on this machine; `make test` checks it. Both install what they need into .venv.
SHELL := /bin/bash -o pipefail
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOG := $(VENV)/install.log
COMMA := ,

# Two come without their dependencies. Of nvidia-pytriton only the server's binary is run, and its old numpy has no Python
# 3.13; KServe's SDK is read and never imported, for the shape of what it describes.

# pip, with one line of progress; its warnings are shown only when it fails. A registry that stumbles is asked again: each
# download several times, and a whole installation, which goes on where it was, three times.
INSTALL = PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_RETRIES=8 PIP_DEFAULT_TIMEOUT=60 \
	$(BIN)/python -m pip install --constraint constraints.txt
PROGRESS = awk '/^ *(Collecting|Downloading|Using cached)/ { printf "\r\033[K    %d: %s", ++n, $$2; fflush() } END { printf "\r\033[K" }'

define install
	@for pause in 5 30 none; do \
		$(INSTALL) $(1) && exit 0; \
		[ $$pause = none ] || { echo "==> once more in $$pause s"; sleep $$pause; }; \
	done; cat $(LOG); exit 1
endef

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: setup ## build an engine of a real model, serve it with a real Triton, ask it a question
	@$(BIN)/trierarch demo

test: setup lint ## lint, format, types; unit, golden and integration tests
	@echo "==> tests (a quarter of an hour on two cores: many start a real Triton)"
	@$(BIN)/pytest --durations=25

lint: setup ## check style, format and types
	@echo "==> ruff check"
	@$(BIN)/ruff check
	@echo "==> ruff format"
	@$(BIN)/ruff format --check
	@echo "==> hadolint"
	@$(BIN)/hadolint docker/Dockerfile docker/Dockerfile.cpu
	@echo "==> mypy"
	@$(BIN)/mypy

bench: setup ## list the benchmarks; make bench NAME=cpu runs one
	@$(BIN)/python -P -m trierarch.benchmarks $(NAME)

OUT ?= benchmarks/out/borrowed
INCLUDE ?= check,tests,attention,bench
SECONDS_LEFT ?= 570

gpu: ## on a machine with a GPU, nothing installed: check it, tests/gpu, attention, benchmark gpu; OUT=, INCLUDE=, GPU_OPTIONS=
	@PYTHONPATH=.src $(PYTHON) -P -m trierarch.benchmarks.borrowed --out $(OUT) --include $(INCLUDE) \
		--seconds $(SECONDS_LEFT) -- $(GPU_OPTIONS)

setup: $(STAMP) ## create .venv and install Trierarch in it

clean: ## remove .venv, built engines and caches
	rm -rf $(VENV) engines .trierarch .pytest_cache .mypy_cache .ruff_cache .hypothesis .src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@PYTHONPATH=.src $(PYTHON) -m trierarch.orchestrator.prerequisites
	@echo "==> installing into $(VENV) (the first time takes a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	$(call install,--quiet --upgrade 'pip>=25.1' 2> $(LOG))
	$(call install,--editable '.[modelopt$(COMMA)kubernetes]' --group dev --group reference --group bench 2> $(LOG) | $(PROGRESS))
	$(call install,--quiet --no-deps nvidia-pytriton kserve 2> $(LOG))
	@touch $@

.PHONY: help demo test lint bench gpu setup clean
