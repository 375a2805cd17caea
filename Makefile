# `make demo` and `make test` work from a clean clone. PIP_ARGS is passed to pip; for example
# PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" takes the small CPU build.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# One process more than there are processors: some tests wait for others or for a clock.
WORKERS ?= $(shell $(PYTHON) -c "import os; print((os.cpu_count() or 1) + 1)")
# Processes that tests start compile our modules once, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-rounding test-manipulation lint golden house bench pages docs

demo: $(STAMP)
	$(BIN)/rheo demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

# What learns, with another rounding of the same numbers: `default` or `avx2`.
CAPABILITY ?= default
test-rounding: $(STAMP)
	ATEN_CPU_CAPABILITY=$(CAPABILITY) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) \
		-m learns tests/algos

# robosuite, Meta-World, Fetch and Kitchen: a virtual environment of their own, with another MuJoCo.
MANIPULATION := .venv-manipulation
test-manipulation: $(MANIPULATION)/.installed
	OMP_NUM_THREADS=1 $(MANIPULATION)/bin/python -m pytest -q -n auto tests/envs \
		tests/interop tests/scripts/test_configs.py -k "not learn"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/pyright

# Hashes of what every algorithm becomes; a change of structure leaves them as they are.
golden: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/golden.py

# How many lines, how deep, which rings of imports.
house: $(STAMP)
	$(BIN)/python tests/house.py

# Speed beside other libraries and between our methods; WHAT="env update quick=true" for a part.
bench: $(STAMP)
	$(BIN)/rheo bench $(WHAT)

# What is made of README and docs, from help texts, docstrings, values and summaries.
pages: $(STAMP)
	$(BIN)/python tests/reference.py

# The pages as a site in site/, by an environment that has nothing else.
SITE := .venv-docs
docs: $(SITE)/.installed
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict --quiet
	@echo site/index.html

$(SITE)/.installed: constraints.txt
	test -x $(SITE)/bin/python || $(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install -q $(PIP_ARGS) -c constraints.txt mkdocs-material
	touch $@

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e ".[dev,warp]"
	touch $@

$(MANIPULATION)/.installed: pyproject.toml constraints-manipulation.txt
	test -x $(MANIPULATION)/bin/python || $(PYTHON) -m venv $(MANIPULATION)
	$(MANIPULATION)/bin/python -m pip install -q $(PIP_ARGS) -c constraints-manipulation.txt \
		-e ".[dev,manipulation]"
	touch $@
