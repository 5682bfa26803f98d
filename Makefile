# `make help` lists the targets. Everything runs inside .venv, which `make env` builds once.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.env-$(shell cat settings.ini setup.py constraints.txt requirements-offline.txt | cksum | tr ' ' -)
PIP := $(BIN)/python -m pip --disable-pip-version-check
# pip names every folder of a find-links setting that does not exist
QUIET := 2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2)
PART ?= patch

export PATH := $(CURDIR)/$(BIN):$(PATH)
# two notebooks or tests run side by side: one thread each
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: help env demo test test-all check-export check-clean lint types notebooks notebooks-slow pytest pytest-all docs readme bench lab hooks bump clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

env: $(STAMP)  ## build .venv from constraints.txt (costs nothing when nothing changed)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 env")'
	@$(PYTHON) tools/syslibs.py
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: the first time takes minutes"
	@$(PIP) install --quiet -e ".[behavior,ocad,lens,ranking,dev]" -c constraints.txt $(QUIET)
	@$(PIP) install --quiet --no-deps --require-hashes -r requirements-offline.txt $(QUIET)
	@rm -f .venv/.env-*
	@touch $@

demo: env  ## train behavior, ocad, lens and ranking on generated data and write their reports
	@ai-suite demo

test: env check-export check-clean lint types notebooks pytest  ## everything that CI runs
test-all: env check-export check-clean lint types notebooks notebooks-slow pytest-all  ## the same with the slow cells and tests

check-export: env
	@python tools/check.py export
check-clean: env
	@python tools/check.py clean
lint: env
	@ruff check .
types: env
	@mypy
notebooks: env
	@python tools/check.py notebooks
notebooks-slow: env
	@python tools/check.py notebooks slow
pytest: env
	@python -m pytest -n 2 -m "not slow"
pytest-all: env
	@python -m pytest -n 2

docs: env  ## the site, into _docs/ (with Quarto when it is on PATH)
	@python tools/docs.py site
readme: env  ## README.md from nbs/index.ipynb
	@python tools/docs.py readme
bench: env  ## run benchmarks/*.py; results go to benchmarks/results/
	@shopt -s nullglob; set -- benchmarks/*.py; [ $$# -gt 0 ] || echo "no benchmark is here yet"; for script; do python "$$script"; done
lab: env  ## open the notebooks in JupyterLab
	@jupyter lab nbs
hooks: env  ## install the nbdev and pre-commit git hooks into this clone
	@nbdev-install-hooks
	@pre-commit install
bump: env  ## raise the version: make bump PART=major|minor|patch
	@python tools/bump.py $(PART)
clean:  ## remove what the other targets made, except .venv
	@rm -rf _docs _proc build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis nbs/nbdev.yml nbs/sidebar.yml
	@find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 rm -rf
