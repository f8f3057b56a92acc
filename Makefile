# `make study` and `make test` need Python 3.11 or later and nothing else; both set up .venv first.

PYTHON ?= python3
OUT ?= runs/subspaces
BIN := .venv/bin

.PHONY: study test check clean

study: .venv/ready
	$(BIN)/python study/run.py --space subspaces --preset laptop --out $(OUT)
	$(BIN)/python analysis/report.py $(OUT)

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
