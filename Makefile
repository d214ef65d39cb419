# `make demo` and `make test` set themselves up: the first call creates .venv, later ones reuse it.

PYTHON ?= python3
# for two cores: a test that waits for a process it started leaves its core to a third
JOBS   ?= 3
VENV   := .venv
OLDEST := .venv-oldest
BIN    := $(VENV)/bin

# Test files go to JOBS processes; a file stays in one, so that its kernels compile once.
PYTEST := -m pytest -n $(JOBS) --dist loadfile

# Where releases of Triton differ: what compiles, loads and launches, and a file of ops a family. The whole suite there is
# `make test-oldest ARGS=tests`.
RELEASED := tests/autotune tests/cli $(addprefix tests/ops/test_,op.py gradients.py gradients_torch.py decode.py fft.py fp8.py pointwise.py)

.DEFAULT_GOAL := help
.PHONY: help demo test test-rest test-oldest test-gpu mutate check fmt golden picture clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(VENV)/.ready ## three published variants, declared, planned, compiled, run and proved, with no GPU
	$(BIN)/attnc demo

test: check ## the checks, and most of the suite, on the newest Triton; all that ARGS selects
	$(BIN)/python $(PYTEST) $(or $(ARGS),--part first)

test-rest: $(VENV)/.ready ## what `make test` leaves out: more variants, dtypes and lengths of slow tests
	$(BIN)/python $(PYTEST) --part rest $(ARGS)

test-oldest: $(OLDEST)/.ready ## what compiles, loads and runs kernels, on the oldest Triton supported
	$(OLDEST)/bin/python $(PYTEST) $(or $(ARGS),$(RELEASED))

test-gpu: ## the GPU tests, with the torch, triton and pytest that PYTHON already has
	$(PYTHON) -m pytest -m gpu $(ARGS)

mutate: $(VENV)/.ready ## break every derived gradient in turn, and see a test fail; half an hour
	$(BIN)/python tests/mutate.py

check: $(VENV)/.ready ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.ready ## format, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(VENV)/.ready ## rewrite tests/golden and docs/gallery from what is emitted now; read the diff before committing it
	$(BIN)/python -m pytest tests -k golden --update-golden $(ARGS)
	$(BIN)/attnc gallery -o docs/gallery

picture: $(VENV)/.ready ## draw docs/plan.svg anew
	$(BIN)/python docs/picture.py

clean: ## remove the environments and the tools' caches
	rm -rf $(VENV) $(OLDEST) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.ready: constraints.txt
$(OLDEST)/.ready: constraints-oldest.txt

$(VENV)/.ready $(OLDEST)/.ready: pyproject.toml
	@echo "Setting up $(@D), once: PyTorch and Triton are large, so this takes a minute or more."
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint $(filter constraints%,$^) --editable '.[dev]'
	@touch $@
