# Two commands to begin with: `make demo` and `make test`. Each makes the environment the first time.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
REPEATS ?= 10
READY = $(VENV)/.ready

# What needs no Ray, no rank processes, no GPU and no browser, and takes no seconds.
FAST = not ray and not ranks and not gpu and not browser and not slow

.PHONY: demo test test-fast chaos corruption lint clean

demo: $(READY)
	$(BIN)/orchestrator submit --config examples/demo.yaml

test: $(READY)
	$(BIN)/python -m pytest

test-fast: $(READY)
	$(BIN)/python -m pytest --ignore tests/integration -m '$(FAST)'

# Every byte and bit of a small result: minutes, a process a file.
corruption: $(READY)
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/corruption.py
# Strikes a driver in every way and phase, and writes the table of docs/reliability.md; hours.
chaos: $(READY)
	PYTHONPATH=.:tests/support $(BIN)/python tests/chaos/chaos.py --repeats $(REPEATS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/structure.py
	$(BIN)/deptry .

clean:
	rm -rf $(VENV) build *.egg-info

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[deepspeed,test]'
	touch $(READY)
