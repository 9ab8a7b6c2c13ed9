# Every target makes the environment first, and brings it up to date when requirements.txt or pyproject.toml changed.
# Another Python: make PYTHON=python3.12 test (the first time; later remove .venv before)

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help demo figures docs test test-all test-release check clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## train two heads on the base that ships, put them together, draw
	$(RUN) learnable_memory demo

figures: $(STAMP) ## draw the pictures of the README
	$(RUN) learnable_memory figures

docs: $(STAMP) ## build the API reference and the guide, into build/docs
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

test: $(STAMP) ## run the fast tests
	$(RUN) pytest -n 2 --dist loadscope -m "not slow and not release"

test-all: $(STAMP) ## run the slow tests, which "make test" leaves out
	$(RUN) pytest -n 2 --dist loadscope -m "slow and not release"

test-release: $(STAMP) ## run what takes minutes each: notebooks, the wheel, all cards, the documents' commands
	$(RUN) pytest -m release

check: $(STAMP) ## look for mistakes, formatting that differs, and types that do not fit
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

clean: ## remove caches and build output; the environment and results stay
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.venv: $(STAMP) ## make the environment (several GB: torch)

# The stamp is written last, so that an installation that broke off is done again.
$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --disable-pip-version-check --editable '.[test]'
	touch $@
