# make demo: spec to compiled kernel to checked numbers.  make test: everything that CI checks.
# Both set up .venv unless torch is there already and the package index cannot be reached.
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test setup format golden

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	sh scripts/setup.sh $(VENV)
	touch $@

demo: setup
	$(RUN) -m fa3gen.demo

test: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest -n 2

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

golden: setup
	$(RUN) -m fa3gen.cli generate
