# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# Files in packages have the time of the commit, so that two builds of it are the same.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 1580601600)
HELM = $(shell $(BIN)/python helm/binary.py)
COSIGN ?= cosign
REGISTRY ?= ghcr.io/creatify-exporter

.PHONY: help run check coverage test test-deploy lint lint-workflows soak fuzz bench alert-lab dashboards chart-readme lock clean \
  dist chart check-ci check-release release-notes publish-image publish-chart publish-notes

# Hundreds of processes import the product and the tests: they share what the first one has compiled, whatever the machine's setting.
test check: export PYTHONDONTWRITEBYTECODE :=

# Rooms of tests that need no other program than this one.
UNIT := $(addprefix tests/,cli config creatify documents ledger scrape simulator web)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: $(VENV)/run.stamp ## serve the metrics of a simulated account on http://localhost:10081 (ARGS= for more flags)
	exec $(BIN)/creatify-exporter --demo $(ARGS)

test: lint ## lint, then every test
	$(BIN)/pytest -n auto --no-loadscope-reorder $(ARGS)

check: lint ## lint, then the unit tests that are not slow: a minute
	HYPOTHESIS_PROFILE=quick $(BIN)/pytest -q -n auto --dist=loadfile -m "not slow" $(UNIT) $(ARGS)

coverage: $(VENV)/dev.stamp ## how much of the product the unit tests run, by branches
	$(BIN)/pytest -q -n auto --cov --cov-report=term:skip-covered $(UNIT) $(ARGS)

lint: $(VENV)/dev.stamp ## ruff, mypy, the layer contract, and zizmor for the workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/zizmor --quiet --offline .github

lint-workflows: build/tools/actionlint ## actionlint, which needs Go
	build/tools/actionlint

soak: $(VENV)/dev.stamp ## an hour of faults, 1,000 kills, the property tests at length; the seed is printed
	seed=$$($(BIN)/python -c 'import secrets; print(secrets.randbits(32))'); echo "seed: $$seed"; \
	  HYPOTHESIS_PROFILE=soak LEDGER_HISTORIES=5000 $(BIN)/pytest -n auto --timeout=0 --hypothesis-seed=$$seed \
	  tests/ledger/test_oracle.py tests/creatify/test_decoder.py $(ARGS) && \
	  SOAK_SEED=$$seed SOAK_SECONDS=$${SOAK_SECONDS:-3600} FIRE_KILLS=$${FIRE_KILLS:-1000} $(BIN)/pytest --timeout=0 -s \
	  tests/end_to_end/test_soak.py tests/end_to_end/test_fire.py $(ARGS)

fuzz: $(VENV)/dev.stamp ## broken lists, configurations and requests for FUZZ_SECONDS each (900); the seed is printed
	FUZZ_SEED=$$($(BIN)/python -c 'import secrets; print(secrets.randbits(32))') FUZZ_SECONDS=$${FUZZ_SECONDS:-900} \
	  $(BIN)/pytest -n auto -rP tests/fuzz/test_fuzz.py $(ARGS)

bench: $(VENV)/bench.stamp ## what a scrape costs, beside other ways: 30 minutes on an idle machine, writes docs/performance.md; ARGS=--quick: 2 minutes
	PYTHONPATH=exporter $(VENV)/bench/bin/python bench/scrape.py $(ARGS)

dashboards: $(VENV)/dev.stamp ## write the dashboards' JSON from their code
	PYTHONPATH=exporter $(BIN)/python -m grafana.build

test-deploy: $(VENV)/dev.stamp ## build, run, stop and restart the image (as root; Debian's buildah, podman, runc, debootstrap)
	$(BIN)/pytest tests/deploy/image.py $(ARGS)

chart-readme: $(VENV)/dev.stamp ## write the values into the chart's page
	$(BIN)/python helm/readme.py

dist: $(VENV)/dev.stamp ## sdist and wheel in dist/, the same at each build of a commit, and checked
	rm -rf dist/*.tar.gz dist/*.whl
	$(BIN)/hatchling build --target sdist --directory dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --wheel-dir dist dist/*.tar.gz
	$(BIN)/twine check --strict dist/*.tar.gz dist/*.whl
	$(BIN)/check-wheel-contents dist/*.whl

chart: $(VENV)/dev.stamp ## the chart's package in dist/ (ARGS="--sign --key NAME --keyring FILE" for a signed one)
	$(HELM) package helm/creatify-exporter --destination dist $(ARGS)

check-ci: ## that CI has passed for this commit of main, by gh
	@test -n "$$(gh run list --workflow ci.yml --event push --commit $$(git rev-parse HEAD) --status success --json url --jq '.[].url')" \
	  || { echo "make: CI has not passed for $$(git rev-parse HEAD): push it to main, wait for ci, then run the release again"; exit 1; }

check-release: $(VENV)/dev.stamp ## that TAG, the version in each file and the changelog agree
	$(BIN)/python deploy/release.py check $(TAG)

release-notes: $(VENV)/dev.stamp ## print what the changelog says of TAG
	@$(BIN)/python deploy/release.py notes $(TAG)

publish-image: ## build the image of TAG for two platforms, with SBOM and provenance, push it to REGISTRY, sign it
	mkdir -p dist
	docker buildx build --platform linux/amd64,linux/arm64 --sbom=true --provenance=mode=max --push \
	  --build-arg VERSION=$(TAG:v%=%) --build-arg CREATIFY_EXPORTER_REVISION=$$(git rev-parse HEAD) \
	  --metadata-file dist/image.json --tag $(REGISTRY)/creatify-exporter:$(TAG:v%=%) .
	$(COSIGN) sign --yes $(REGISTRY)/creatify-exporter@$$($(PYTHON) deploy/release.py digest dist/image.json)

publish-chart: chart ## push the chart to REGISTRY and sign it
	$(HELM) push dist/creatify-exporter-*.tgz oci://$(REGISTRY)/charts $(PUSH_ARGS) > dist/chart.txt 2>&1 || { cat dist/chart.txt; exit 1; }
	$(COSIGN) sign --yes $(REGISTRY)/charts/creatify-exporter@$$($(PYTHON) deploy/release.py digest dist/chart.txt)

publish-notes: $(VENV)/dev.stamp ## make the release of TAG on GitHub, with the packages and what the changelog says
	mkdir -p build
	$(BIN)/python deploy/release.py notes $(TAG) > build/notes.md
	gh release create $(TAG) --verify-tag --title $(TAG) --notes-file build/notes.md dist/*

alert-lab: $(VENV)/dev.stamp ## measure what the alerts detect, and how often they are wrong (20 weeks, about an hour; ARGS=--runs or --spikes: what other limits would cost)
	$(BIN)/python prometheus/lab $(ARGS)

lock: ## pin what pyproject.toml asks for, with hashes and without any address
	$(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/pip install --quiet uv
	$(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
	  --extra postgresql --output-file requirements.lock pyproject.toml
	$(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
	  --extra postgresql --group dev --output-file requirements-dev.lock pyproject.toml
	$(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
	  --group build --constraints requirements-dev.lock --output-file requirements-build.lock
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

$(VENV)/run.stamp: requirements.lock requirements-build.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock -r requirements-build.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/bench.stamp: requirements-bench.lock | $(VENV)/bin/python
	@$(PYTHON) -m venv $(VENV)/bench # of its own, since what is there for developing makes a start slower
	$(VENV)/bench/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@touch $@

build/tools/actionlint:
	GOBIN=$(CURDIR)/build/tools go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
