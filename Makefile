# Everything a person or CI does here. Needs Python >= 3.11 with venv, make, git; `make bench` also a C compiler
# and, for the rows over TLS, libssl-dev.
# ARGS goes to the program behind a target:  make test ARGS="tests/config -x"

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
RUNTIME := .venv/.runtime
DEV := .venv/.dev
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help run test test-languages test-rows check bench fuzz browser chaos soak clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

run: $(RUNTIME) ## Start the daemon with its own Postgres and a demo receiver, send one event and show it arrive
	@exec $(BIN)/dealix demo $(ARGS)

# Most tests wait most of the time: two at a time, a file's in one process.
test: $(DEV) ## Run the tests
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-rows: $(DEV) ## Run each benchmark row at a tiny size
	$(BIN)/pytest -m rows tests/bench $(ARGS)

test-languages: $(DEV) ## Run the verification code of PHP, Ruby, Go, Java and C#, as far as this machine has them
	$(BIN)/pytest -m languages tests/verifiers $(ARGS)

check: $(DEV) ## Lint, formatting, import floors, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/basedpyright

bench: $(DEV) ## Measure the short rows of the table of figures; one alone: make bench ARGS=drain
	$(BIN)/python -m bench $(ARGS)

chaos: $(DEV) ## Inject every fault, the long ones too, and write the figures into docs/reliability.md
	$(BIN)/pytest -m 'not soak' --timeout=600 tests/chaos tests/e2e $(ARGS); code=$$?; \
		$(BIN)/python -m tests.chaos.table && exit $$code

soak: export SOAK_S ?= 3600
soak: $(DEV) ## An hour of load, SOAK_S seconds
	$(BIN)/pytest -m soak --timeout=0 tests/chaos $(ARGS)
	$(BIN)/python -m tests.chaos.table

fuzz: export FUZZ_S ?= 1800
fuzz: $(DEV) ## Run the fuzz tests for long: FUZZ_S seconds each
	$(BIN)/pytest -m fuzz --timeout=0 $(ARGS)

browser: $(DEV) ## Walk through all pages in Chromium, in both languages, every look; pictures in tests/out
	BROWSER=all $(BIN)/pytest --timeout=300 tests/browser $(ARGS)

clean: ## Remove what these targets made (the venv too, the demo's data not)
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache .hypothesis bench/out tests/out tests/chaos/out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One venv for all: `run` fills it with what the product needs, the other targets add the tools. The stamps are older
# than a changed pyproject.toml or constraints.txt, so that only then pip is asked again.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one by PYTHON=…" >&2; exit 1; }
	@echo "Making .venv …"
	@$(PYTHON) -m venv .venv

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the product into .venv …"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the product and its tools into .venv …"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(RUNTIME) $@
