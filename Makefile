# make demo   set up and run the main job: every task on the embedded model, into outputs/demo
# make test   set up and pass the tests
# make lint types   what else CI runs
#
# constraints.txt holds every version that was tested. Where the package index offers torch only as a CUDA build,
# point pip at a CPU one first (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), or install torch into .venv beforehand.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types format clean

demo: .venv/installed
	$(BIN)/pusa demo --out outputs/demo

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/python -m mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf outputs build src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
