# Two commands do everything: `make run` (see it work) and `make test` (see that it works).
# Each makes .venv first when that is missing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PROMPT ?= The three things every small computer needs are
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup run daemon test fast bench docs clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(VENV)/.ready  ## make .venv with everything that running and testing needs

$(VENV)/.ready: pyproject.toml constraints.txt
	@sh .ci/prerequisites $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup: installing; llama-cpp-python is built from its sources, which takes about 8 minutes on 2 cores"
	@echo "       (pip keeps the built wheel, so this happens once on a machine; progress: $(VENV)/pip.log)"
	@$(BIN)/pip install --quiet --log $(VENV)/pip.log -c constraints.txt -e '.[demo,dev,torch]' || { \
	  echo "setup: failed; the end of $(VENV)/pip.log:"; tail -n 25 $(VENV)/pip.log; exit 1; }
	@touch $@
	@echo "setup: done"

run: setup  ## start a private daemon, load the bundled model, answer PROMPT="…", stop
	@$(BIN)/python -m tests.demo --prompt '$(subst ','\'',$(PROMPT))'

daemon: setup  ## run the daemon in the foreground with configs/edge.yaml and a state folder in ./var
	@mkdir -p var
	$(BIN)/h2qd --config configs/edge.yaml --socket var/h2qd.sock --state-dir var/state

test: setup  ## format, lint, types, import boundaries, all tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/coverage erase
	$(BIN)/coverage run --source=h2qd/core,h2qd/wire,h2qd/gguf -m pytest tests/unit tests/property tests/simulation
	$(BIN)/coverage report --include='h2qd/core/*,h2qd/wire/*' --fail-under=100 --skip-covered --show-missing
	$(BIN)/python -m pytest tests/integration tests/faults tests/soak tests/e2e

bench: setup  ## measure against the raw libraries, side by side (minutes; a quiet machine)
	$(BIN)/python -m tests.bench

docs: setup  ## write the generated parts of the documents anew
	$(BIN)/python -m h2qd.wire.document
	$(BIN)/python -m h2qd.config > configs/README.md
	$(BIN)/python -m tests.docs

clean:  ## remove .venv and all that was built
	rm -rf $(VENV) var build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
