# constraints.txt holds every version that was tested. Where the package index offers torch only as a CUDA build,
# point pip at a CPU one first (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), or install torch into .venv beforehand.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs format release clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/installed ## set up and run every task on the embedded model, into outputs/demo
	$(BIN)/pusa demo --out outputs/demo

test: .venv/installed ## set up and run the tests
	$(BIN)/python -m pytest

lint: .venv/installed ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed ## check types
	$(BIN)/python -m mypy

docs: .venv/installed ## build the documentation site into build/docs; a warning is an error
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs build/docs

format: .venv/installed ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

release: .venv/installed ## run all checks, then build the sdist and the wheel into dist (docs/releasing.md)
	test -z "$$(git status --porcelain)" || { echo "Commit your changes first: see git status."; exit 1; }
	.ci/run
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean: ## remove what the targets above made, except .venv
	rm -rf outputs build dist docs/api/generated src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
