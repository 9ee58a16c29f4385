# Every everyday task. `make` alone prints this list; all of it works from a fresh clone.
# PYTHON is the Python that set-up starts with (3.11 or later).

PYTHON ?= python3
BIN := .venv/bin
ENVIRONMENT := deploy/local/environment
PYTEST_ARGS ?=

# Every process would compile our sources anew; where this is set, it is for images.
unexport PYTHONDONTWRITEBYTECODE

# The demo's own settings travel as they are, for example DEMO_DATA=folder make demo.
export DEMO_DATA

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup test check lint types imports graph graph-check protos codegen codegen-check pytest format lock \
	demo demo-quick bench bench-accounting bench-ledger bench-train bench-inference \
	bench-streaming bench-dataset bench-utility bench-control test-families test-kubernetes test-gpu \
	fuzz-expressions fuzz-calls fuzz-files soak base-model up status down clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## make .venv and put everything in it; quick when nothing changed
	@$(PYTHON) $(ENVIRONMENT)/setup.py

test: setup check pytest  ## set up, check, and run all tests

check: lint types imports graph-check protos codegen-check  ## everything that needs no test to run

lint: setup  ## ruff: style, docstrings, likely mistakes, formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy, strict
	$(BIN)/mypy

imports: setup  ## who may import whom
	$(BIN)/lint-imports --no-logo

graph: setup  ## draw who imports whom into README.md
	@$(BIN)/python $(ENVIRONMENT)/graph.py

graph-check: setup  ## is the drawing today's?
	@$(BIN)/python $(ENVIRONMENT)/graph.py --check

protos: setup  ## buf: the contracts' style
	$(BIN)/buf lint protos

codegen-check: setup  ## is the generated code what the protos say?
	@$(BIN)/python $(ENVIRONMENT)/codegen.py --check

# Files run side by side (`tests/conftest.py` says how many), in their order: the longest begin, so that none is left for
# the end. PYTEST_ARGS="-n0" runs them one after the other.
pytest: setup  ## the tests alone; PYTEST_ARGS="-k ledger -x" chooses
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

format: setup  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

codegen: setup  ## generate the Python stubs from protos/
	@$(BIN)/python $(ENVIRONMENT)/codegen.py

# uv reads its own settings, not pip's; where the CPU builds lie is the one thing both must know. Nothing about
# where packages come from may get into the lock, hence no header and no annotation.
lock: setup  ## compile requirements.in to lock.txt
	@$(BIN)/python $(ENVIRONMENT)/codegen.py --environment-only
	cd $(ENVIRONMENT) && UV_FIND_LINKS="$${UV_FIND_LINKS-$$PIP_FIND_LINKS}" ../../../.venv-codegen/bin/uv pip compile \
		requirements.in --excludes excludes.txt --python-version 3.11 --no-header --no-annotate --quiet -o lock.txt

test-families: setup  ## base models of every family, served with an adapter each
	MURMURA_TEST_FAMILIES=all $(BIN)/pytest tests/integration/inference/test_families.py

test-gpu: setup  ## what is proven of a private step, on a CUDA device
	MURMURA_TEST_DEVICE=cuda $(BIN)/pytest tests/unit/trainer/worker/test_worker_engine.py

demo: setup  ## the whole story: data, budget, private fine-tuning, sampling
	$(BIN)/python -m deploy.local.demo

demo-quick: setup  ## the same in a few minutes, on fewer rows and steps
	$(BIN)/python -m deploy.local.demo --quick

bench: setup  ## every bench, the better part of an hour; writes tests/bench/RESULTS.md; ONLY="ledger train" chooses
	@$(BIN)/python -m tests.bench.results $(ONLY)

bench-accounting: setup  ## noise our currency needs, beside the exact PLD and an RDP accountant
	@$(BIN)/python -m tests.bench.accounting

bench-ledger: setup  ## durable bookkeeping beside a bare gRPC echo, with both stores
	@$(BIN)/python -m tests.bench.ledger

bench-train: setup  ## private fine-tuning beside plain LoRA and Opacus: tokens per second and memory
	@$(BIN)/python -m tests.bench.train

bench-inference: setup  ## the inference service beside the bare engine and vLLM's HTTP server
	@$(BIN)/python -m tests.bench.inference

bench-streaming: setup  ## what a streamed token costs beside vLLM's HTTP server
	@$(BIN)/python -m tests.bench.streaming

bench-dataset: setup  ## the way of rows to a worker beside Arrow Flight, and memory for ten times the rows
	@$(BIN)/python -m tests.bench.dataset

bench-control: setup  ## from a wish to a pod and from an adapter to the end, at 1 and at 100 jobs at once
	@$(BIN)/python -m tests.bench.control

test-kubernetes: setup  ## what every launcher promises, on the cluster of $$KUBECONFIG too; see deploy/README.md
	@MURMURA_TEST_KUBERNETES=1 $(BIN)/python -m pytest tests/integration/trainer/test_launchers.py $(PYTEST_ARGS)

fuzz-calls: setup  ## random and hostile messages to every RPC of every service; SECONDS=300, ENGINE=vllm
	@MURMURA_FUZZ_SECONDS=$(or $(SECONDS),300) MURMURA_TEST_ENGINE=$(or $(ENGINE),transformers) \
		$(BIN)/python -m pytest tests/integration/test_any_message.py -q -s

fuzz-expressions: setup  ## hostile expression trees, and random programs as Python and the engine run them; SECONDS=300
	@MURMURA_FUZZ_SECONDS=$(or $(SECONDS),300) $(BIN)/python -m pytest -q -s \
		tests/unit/dataset/test_expression_fuzz.py tests/unit/sdk/test_any_program.py

fuzz-files: setup  ## damaged and hostile files of every format, registered; SECONDS=300
	@MURMURA_FUZZ_SECONDS=$(or $(SECONDS),300) $(BIN)/python -m pytest tests/unit/dataset/test_any_file.py -q -s

soak: setup  ## the inference service at saturation, adapters coming and going; SECONDS=600
	@$(BIN)/python -m tests.bench.soak

bench-utility: setup  ## how well private models write for several epsilons, with default settings
	@$(BIN)/python -m tests.bench.utility

base-model: setup  ## pre-train the bundled base model on public text: CORPUS=medquad.txt.gz
	@test -n "$(CORPUS)" || { echo "Name the text to train on: make base-model CORPUS=medquad.txt.gz"; exit 2; }
	$(BIN)/python -m deploy.local.base_model.train --corpus "$(CORPUS)"

up: setup  ## start the four services on this machine
	$(BIN)/murmura up

status: setup  ## say how they are
	$(BIN)/murmura status

down: setup  ## stop them; nothing is lost
	$(BIN)/murmura down

# The state in .murmura holds budgets that were spent, so no target removes it.
clean:  ## remove caches and build leftovers; keeps .venv and .murmura
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist clients/python/dist
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
