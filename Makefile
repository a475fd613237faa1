# Every target makes and uses .venv itself; nothing needs to be activated.
PYTHON ?= python3
# Each job is a process with torch in it, about half a gigabyte: four are enough for the miniature.
# nproc alone would take OMP_NUM_THREADS, the threads of one process, for the number of cores.
JOBS ?= $(shell n=$$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ $$n -lt 4 ] && echo $$n || echo 4)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process of tests for each core, four at most: each has torch in it. Whoever is done takes tests from another.
SPREAD := --numprocesses logical --maxprocesses 4 --dist worksteal
# torch-xla runs with one version of torch: an environment of its own.
TPU_VENV := .venv-tpu
TPU_READY := $(TPU_VENV)/.ready
# Snakemake only starts `rpo`: an environment of its own, as its pins are not those of rpo.
SNAKEMAKE_VENV := .venv-snakemake
SNAKEMAKE_READY := $(SNAKEMAKE_VENV)/.ready
# axe-core, of which that package is a copy: the browser reads it, Python does not.
AXE := $(VENV)/axe

.DEFAULT_GOAL := help
.PHONY: help setup setup-tpu figure2 figure2-gpu protocol test test-all test-xla test-report test-slurm lint bench gpu-check clean

help: ## say what there is
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## make .venv with the pinned versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,lora]'
	@touch $(READY)

setup-tpu: $(TPU_READY) ## make .venv-tpu with torch-xla: Linux on x86-64, Python 3.11 or 3.12, 8 GB

$(TPU_READY): pyproject.toml constraints-tpu.txt
	@$(PYTHON) -c 'import platform, sys; sys.exit((platform.system(), platform.machine()) != ("Linux", "x86_64") or not (3, 11) <= sys.version_info < (3, 13))' \
		|| { echo "torch-xla's TPU library needs Linux on x86-64 and Python 3.11 or 3.12: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(TPU_VENV)
	$(TPU_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(TPU_VENV)/bin/python -m pip install --quiet --constraint constraints-tpu.txt --editable '.[dev,lora,tpu]'
	@touch $(TPU_READY)

figure2: $(READY) ## train the length-bias experiment on the embedded miniature and draw Figure 2
	$(BIN)/rpo figure figure2 --recipe miniature/figure2.yaml --jobs $(JOBS)

figure2-gpu: $(READY) ## the same with SmolLM2-135M on real text, on a GPU; FIGURE2="--workspace DIR"
	$(BIN)/rpo figure figure2 --recipe small/figure2.yaml --tune --jobs 4 $(FIGURE2)

protocol: $(READY) ## the full protocol: tuning on validation, five seeds, two hours of CPU and more
	$(BIN)/rpo figure figure2 --recipe miniature/protocol.yaml --tune --jobs $(JOBS) --out results/protocol

test: $(READY) ## prove the code, offline: all but the slow tests, three minutes on two cores
	$(BIN)/python -m pytest $(SPREAD) -m 'not slow'

test-all: $(READY) ## all tests, as the gate runs them
	$(BIN)/python -m pytest $(SPREAD)

test-xla: $(TPU_READY) ## prove the TPU path on XLA's CPU backend: losses, compilations, transfers
	PJRT_DEVICE=CPU $(TPU_VENV)/bin/python -m pytest tests/xla

test-report: $(READY) $(AXE) ## look at a report with Chromium: no requests, axe finds no fault, fits a phone
	$(BIN)/python -m pytest tests/browser

test-slurm: $(READY) $(SNAKEMAKE_READY) ## a figure through Snakemake on a real Slurm of one node; root, apt-get install slurm-wlm munge
	PATH="$(CURDIR)/$(BIN):$(CURDIR)/$(SNAKEMAKE_VENV)/bin:$$PATH" $(BIN)/python -m pytest tests/slurm

$(SNAKEMAKE_READY): constraints-snakemake.txt
	$(PYTHON) -m venv $(SNAKEMAKE_VENV)
	$(SNAKEMAKE_VENV)/bin/python -m pip install --quiet --constraint constraints-snakemake.txt snakemake snakemake-executor-plugin-slurm
	@touch $(SNAKEMAKE_READY)

$(AXE):
	$(BIN)/python -m pip install --quiet --no-deps --target $(AXE) 'axe-playwright-python==0.1.8'

lint: $(READY) ## style and types
	$(BIN)/ruff check rpo_cli tests benchmarks tools
	$(BIN)/ruff format --check rpo_cli tests benchmarks tools
	$(BIN)/mypy

bench: $(READY) ## measure this code beside its baselines, under an hour; BENCH="--device cuda"
	$(BIN)/python -m benchmarks $(BENCH)

gpu-check: $(READY) ## check one GPU in nine minutes: equality, speed, memory; GPU_CHECK="--model DIR --data DIR"
	$(BIN)/python -m benchmarks.gpu_check $(GPU_CHECK)

clean: ## remove .venv, caches and the miniature's workspace
	rm -rf $(VENV) $(TPU_VENV) $(SNAKEMAKE_VENV) runs/miniature .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
