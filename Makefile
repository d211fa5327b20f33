# make train    trains, evaluates and reports; a second call continues or says that the run is done
# make test     runs all tests
# make test-slow  runs the tests at full numbers and full sizes that `make test` leaves out
# make chaos    kills, stops, stalls and damages runs, at full numbers
# make lint     format and lint, as before each commit
# Settings: CONFIG=configs/shapes_long.py  PYTHON=python3.12  WORKERS=1

SHELL := /bin/bash
CONFIG ?= configs/shapes.py
PYTHON ?= python3
WORKERS ?= 2# of the tests; each compiles programs and takes up to 3 GB while it does

RUN := .venv/bin/python

.PHONY: train test test-slow chaos lint

# glibc gives the temporaries of each step back to the kernel, which clears their pages again: with large
# pages a step of configs/shapes.py takes 15% less on two cores. (One arena that keeps them halves the rate.)
train: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
train: .venv/.installed
	$(RUN) -m data_prep.shapes --output data/shapes
	$(RUN) -m seem_jax.train --config=$(CONFIG)

test: .venv/.installed-dev
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: .venv/.installed-dev
	$(RUN) -m pytest -n 1 -m slow $(ARGS)

chaos: .venv/.installed-dev
	$(RUN) -m pytest -n 1 -m chaos $(ARGS)

lint: .venv/.installed-dev
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

# Installed again only when the list of requirements has changed.
.venv/.installed: requirements.txt | .venv/bin/python
	@echo "installing requirements.txt into .venv (once; some minutes)"
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/.installed-dev: requirements-dev.txt requirements-demo.txt .venv/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt \
	  -r requirements-demo.txt
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing):" \
	       "seem_jax needs Python 3.11 or newer. Name one with: make PYTHON=python3.12"; exit 1; }
	@rm -rf .venv
	@$(PYTHON) -m venv .venv || { \
	  echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv"; \
	  rm -rf .venv; exit 1; }
