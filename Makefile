# Set-up for the two commands of the README. All else is Snakemake and DVC.
VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

.PHONY: figure3 test check slow setup stages

figure3: setup
	snakemake figure3
	@echo 'Measured minus closed form (nats, and standard errors), and the largest BDMC gap:'
	@cat results/exact/linear_vae100.json results/bdmc/linear_vae100.json

# lint and the fast tests
test: setup
	ruff check . && ruff format --check . && snakefmt --check Snakefile workflow
	pytest

# and all that CI runs: the pipeline's scenarios with the real programs, a SLURM cluster among them
check: test
	pytest -m pipeline

# the tests at their full counts, for most of an hour
slow: setup
	pytest -m slow

# after figures or claims were added to params.yaml
stages: setup
	PYTHONPATH=src:workflow/lib python workflow/lib/stages.py

setup: $(VENV)/installed

# torch first and pinned: else another package chooses it
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rdcurve needs Python 3.11 or newer, not " + sys.version.split()[0] + ": make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --constraint constraints.txt torch
	pip install --quiet --constraint constraints.txt --editable '.[pipeline,test]'
	touch $@
