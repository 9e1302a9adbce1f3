# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help run test test-deploy lint soak fuzz bench alert-lab dashboards chart-readme lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: $(VENV)/run.stamp ## serve the metrics of a simulated account on http://localhost:10081 (ARGS= for more flags)
	PYTHONPATH=exporter exec $(BIN)/python -m creatify_exporter --demo $(ARGS)

test: lint ## lint, then every test
	$(BIN)/pytest -n auto $(ARGS)

lint: $(VENV)/dev.stamp ## ruff, mypy and the layer contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(VENV)/dev.stamp ## an hour of faults, 1,000 kills, the property tests at length; the seed is printed
	seed=$$($(BIN)/python -c 'import secrets; print(secrets.randbits(32))'); echo "seed: $$seed"; \
	  HYPOTHESIS_PROFILE=soak LEDGER_HISTORIES=5000 $(BIN)/pytest -n auto --timeout=0 --hypothesis-seed=$$seed \
	  tests/ledger/test_oracle.py tests/creatify/test_decoder.py $(ARGS) && \
	  SOAK_SEED=$$seed SOAK_SECONDS=$${SOAK_SECONDS:-3600} FIRE_KILLS=$${FIRE_KILLS:-1000} $(BIN)/pytest --timeout=0 -s \
	  tests/end_to_end/test_soak.py tests/end_to_end/test_fire.py $(ARGS)

fuzz: $(VENV)/dev.stamp ## broken lists, configurations and requests for FUZZ_SECONDS each (900); the seed is printed
	FUZZ_SEED=$$($(BIN)/python -c 'import secrets; print(secrets.randbits(32))') FUZZ_SECONDS=$${FUZZ_SECONDS:-900} \
	  $(BIN)/pytest -n auto -rP tests/fuzz/test_fuzz.py $(ARGS)

bench: $(VENV)/bench.stamp ## what a scrape costs, beside other ways: 15 minutes, writes docs/performance.md; ARGS=--quick: 1 minute
	PYTHONPATH=exporter $(VENV)/bench/bin/python bench/scrape.py $(ARGS)

dashboards: $(VENV)/dev.stamp ## write the dashboards' JSON from their code
	PYTHONPATH=exporter $(BIN)/python -m grafana.build

test-deploy: $(VENV)/dev.stamp ## build, run, stop and restart the image (as root; Debian's buildah, podman, runc, debootstrap)
	$(BIN)/pytest tests/deploy/image.py $(ARGS)

chart-readme: $(VENV)/dev.stamp ## write the values into the chart's page
	$(BIN)/python helm/readme.py

alert-lab: $(VENV)/dev.stamp ## measure what the alerts detect, and how often they are wrong (20 weeks, about 25 minutes)
	$(BIN)/python prometheus/lab $(ARGS)

lock: ## pin what pyproject.toml asks for, with hashes and without any address
	$(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/pip install --quiet uv
	$(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
	  --extra postgresql --output-file requirements.lock pyproject.toml
	$(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
	  --extra postgresql --group dev --output-file requirements-dev.lock pyproject.toml
	$(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
	  --group bench --constraints requirements-dev.lock --output-file requirements-bench.lock pyproject.toml

clean: ## remove everything that was installed or built here
	rm -rf $(VENV) build dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $(PYTHON) is missing or older than 3.11: install Python 3.11 or later, or name it: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "make: $(PYTHON) cannot make a virtual environment: install it first, on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements.lock | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/bench.stamp: requirements-bench.lock | $(VENV)/bin/python
	@$(PYTHON) -m venv $(VENV)/bench # of its own, since what is there for developing makes a start slower
	$(VENV)/bench/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@touch $@
