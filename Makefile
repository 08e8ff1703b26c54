# make demo   set up and fine-tune the embedded model, offline
# make test   set up and run all tests
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
WORKERS ?= 2

.PHONY: demo test test-slow lint type bench battery faults docs clean help

help:
	@sed -n '1,2p' Makefile | cut -c3-
	@echo "make lint   ruff        make type   mypy --strict on src"
	@echo "make docs   build the pages into site/        make bench  run the benchmarks (an hour)"
	@echo "make faults   kill runs of every method at 20 moments, let them go on, kill them again, compare (ten minutes)"
	@echo "make battery   statistical tests of the noise (needs gcc and TestU01; an hour)"

$(VENV)/.run: pyproject.toml constraints.txt
	@echo "installing zotune into $(VENV): torch, transformers, peft, Optuna and what they need, which takes minutes ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) -e '.[adapters,sweep]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "installing what the tests need ..."
	@$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/.run
	OMP_NUM_THREADS=1 $(BIN)/python main.py --full_parameter --epochs 5 --eval_every 0.25 --results results/demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check src tests main.py benchmarks experiments
	$(BIN)/ruff check src tests main.py benchmarks experiments

type: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.dev
	for script in passes drift step_cost "step_cost --head vocabulary" memory tables; do \
	  set -- $$script; name=$$1; shift; $(BIN)/python benchmarks/$$name.py "$$@" || exit 1; done

battery: $(VENV)/.dev
	$(BIN)/python benchmarks/battery/run.py $(ARGS)

faults: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_matrix.py $(ARGS)

docs: $(VENV)/.dev
	@$(PIP) -e '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
