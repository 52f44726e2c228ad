# `make demo` and `make test` set up what they need; both are quick the second time.

PYTHON ?= python3
BIN := .venv/bin
PLUGINS := $(wildcard plugins/vgg-jax-*)

.PHONY: demo test check test-slow bench clean

demo: .venv/runtime
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh benchmarks/demo.sh

test: check
	$(BIN)/pytest -n 3 --dist worksteal -m "not slow"

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

test-slow: .venv/dev .venv-keras/done .venv-torch/done
	$(BIN)/pytest -m slow

bench: .venv/dev .venv-keras/done .venv-torch/done
	$(BIN)/python benchmarks/bench.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vgg-jax needs Python 3.11 or later; name one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/runtime: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml $(PLUGINS:%=%/pyproject.toml)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" \
		$(PLUGINS:%=--editable %)
	@touch $@ .venv/runtime

# The real Keras, to compare with; never a dependency.
.venv-keras/done:
	$(PYTHON) -m venv .venv-keras
	.venv-keras/bin/python -m pip install --quiet --disable-pip-version-check keras jax tensorflow h5py pillow scipy
	@touch $@

# The real PyTorch, likewise; Keras runs on it, too.
.venv-torch/done:
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check torch torchvision safetensors numpy \
		keras h5py pillow scipy
	@touch $@

clean:
	rm -rf .venv .venv-keras .venv-torch .pytest_cache .ruff_cache .import_linter_cache
