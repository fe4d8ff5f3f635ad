# make demo   install and run the main job on three synthetic hospitals
# make test   the quick tests;  make test-slow, test-long: the rest;  make check: lint, types, contracts
# make bench  what is measured, side by side;  make bench-pretrain: a step of pretraining
# make bench-peers  dermino beside plain Flower, NVFlare and plain loops (NVFLARE=python with nvflare)
# make pretraining-gain  what continued pretraining gains on real images (about an hour)
# make demo-backbone  make the small backbone that comes with dermino again

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-long check bench bench-pretrain bench-peers demo-backbone pretraining-gain clean help

help:
	@sed -n 's/^# //p' Makefile

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/dermino simulate

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=15 -m "slow and not long"

test-long: $(STAMP)
	$(BIN)/python -m pytest -q --durations=15 -m long

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

bench-pretrain: $(STAMP)
	$(BIN)/python -m tests.benchmarks.pretraining

bench-peers: $(STAMP)
	$(BIN)/python -m tests.benchmarks.peers --per-site 150 $(if $(NVFLARE),--nvflare $(NVFLARE)) --out build/peers

demo-backbone: $(STAMP)
	$(BIN)/python -m dermino_core.demo_backbone.rebuild build/demo-backbone

pretraining-gain: $(STAMP)
	$(BIN)/python -m tests.benchmarks.pretraining_gain --out build/pretraining-gain

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
