# Every target makes what it needs: a virtual environment in .venv with all packages. Safe to run again.
PYTHON ?= python3
RUN := .venv/bin/python
READY := .venv/ready

# A folder with `general` and `cars` in it: for study-small folders, .tar or .zip; for colorizer folders with `train`.
PHOTOS :=

# Processes that share the tests: one a core, and one for those that wait for SLURM.
WORKERS := $(shell expr $$(nproc) + 1)

.PHONY: help demo study-small colorizer test test-fast survival fuzz lint docs coverage gpu-suite clean
help:
	@echo 'make demo       train on the photographs inside pip packages and show the result (5 minutes)'
	@echo 'make study-small PHOTOS=DIR  train and compare nine small runs, and write a report (90 minutes on two cores)'
	@echo 'make colorizer PHOTOS=DIR    train the colorizer of the package anew on general/train and cars/train (75 minutes)'
	@echo 'make test       run all tests (15 minutes on two cores)'
	@echo 'make test-fast  run those that start no processes, clusters and browsers (2 minutes)'
	@echo 'make survival   jobs on four hosts in network namespaces that fail in every way; as root (an hour)'
	@echo 'make fuzz       look for damaged files that cause more than an error line (10 minutes; MINUTES=30)'
	@echo 'make lint       check style, spelling and types'
	@echo 'make docs       build the documentation: site/index.html'
	@echo 'make coverage   run all tests and show which lines they miss (slower than make test)'
	@echo 'make gpu-suite  all that needs a GPU: tests, speed, one epoch; installs nothing (9 minutes)'
	@echo 'make clean      remove .venv and caches; runs/ stays'

demo: $(READY)
	$(RUN) -m hpc_recolor.demo

# Nothing but the two train folders is learned from. The export keeps the vividness that the measured front suggests.
VIVIDNESS := 1 1.2 1.3 1.4 1.5 1.7 2
colorizer: $(READY)
	$(RUN) -m hpc_recolor.prepare '$(PHOTOS)/general/train' '$(PHOTOS)/cars/train' --out runs/colorizer-photos \
	  --fit crop --val 256 --min-side 1 --min-colorfulness 0
	$(RUN) -m hpc_recolor.train --config configs/colorizer.yaml
	$(RUN) -m hpc_recolor.evaluate runs/colorizer --vividness $(VIVIDNESS)
	$(RUN) -m hpc_recolor.checkpoint export runs/colorizer --half --force --out runs/colorizer.safetensors

study-small: $(READY)
	$(RUN) -m hpc_recolor.study --yes $(if $(PHOTOS),--photos '$(PHOTOS)')

test: $(READY)
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --ignore tests/fuzzing
	$(RUN) -m pytest tests/fuzzing

test-fast: $(READY)
	$(RUN) -m pytest -n $$(nproc) --dist loadfile -m 'not slow'

# The tests of survival, on nodes that are hosts of their own; then all faults of hosts, with a table of what they cost.
survival: $(READY)
	DEV_CLUSTER_HOSTS=4 $(RUN) -m pytest tests/launch/test_survival.py
	$(RUN) -m pytest tests/launch/test_host_faults.py tests/launch/test_node_preflight.py -m 'hosts or not hosts' -s

# Failures are kept in .hypothesis/fuzz, and tried first by the next run of these tests.
MINUTES := 10
fuzz: $(READY)
	$(RUN) -m pytest tests/fuzzing --fuzz-minutes $(MINUTES)

lint: $(READY)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m codespell_lib
	$(RUN) -m mypy

# Any warning is an error: a link that leads nowhere, a page that is in no menu.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict --config-file docs/mkdocs/mkdocs.yml
	@echo 'site/index.html; with its search: python3 -m http.server --directory site'

# Each process writes a file of its own. The floor is `fail_under` in pyproject.toml.
coverage: $(READY)
	$(RUN) -m coverage erase
	$(RUN) -m coverage run -m pytest -n $(WORKERS) --dist loadfile
	$(RUN) -m coverage combine --quiet
	$(RUN) -m coverage report

# Installs nothing: with .venv where it is ready, else with $(PYTHON) and the packages that it has.
gpu-suite:
	PYTHONPATH=.:kernels $(if $(wildcard $(READY)),$(RUN),$(PYTHON)) -m benchmarks.gpu_suite

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*

$(READY): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12' >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[cuda13,backbone,recognition,app,heic,demo,notebook,onnx,wandb,fid,docs,dev]'
	touch $@
