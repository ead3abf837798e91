# make demo: spec to compiled kernel to checked numbers.  make test: everything that CI checks.
# Both set up .venv unless torch is there already and the package index cannot be reached.
VENV := .venv
PYTHON := $(VENV)/bin/python

.PHONY: demo test setup format golden

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	sh scripts/setup.sh $(VENV)
	touch $@

demo: setup
	$(PYTHON) -m fa3gen.demo

test: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -n 2

format: setup
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

golden: setup
	$(PYTHON) -m fa3gen.cli generate
