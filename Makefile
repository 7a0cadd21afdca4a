# Everything a person or CI does with this checkout. `make` lists it.
# Dependencies, binaries and Go builds are kept in ${XDG_CACHE_HOME:-~/.cache}/meritorder, so a second clone is warm.

export PYTHON ?= python3
export BASE IMAGE
ARGS ?=

BIN := .venv/bin
# The tests' own tools (assets, servers) are run as modules from tests/.
TOOLS := PYTHONPATH=tests $(BIN)/python -m
DASHBOARDS := PYTHONPATH=charts $(BIN)/python -m meritorder_dashboards
LOCK := $(BIN)/uv pip compile --quiet --no-header --no-annotate --generate-hashes --no-emit-index-url --universal --python-version 3.11

FRESH := .venv/generated
DRIFTED := { echo 'generated files differ from the models; run: make crds' >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help demo test ready check crds chart dashboards image sbom pictures assets bench bench-router stress cluster-up cluster-down kind-up kind-down e2e-slow lock clean run-env dev-env system

help: ## List what can be made
	@echo 'usage: make TARGET [ARGS="..."] [PYTHON=python3.12]'
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: run-env ## Watch traffic move between three simulated pools for about 90 s (pip alone; ARGS="--seconds 60")
	@$(BIN)/meritorder demo $(ARGS)

# The end-to-end story measures latencies, so it has the machine to itself.
test: ready ## Install what the tests need and run them (ARGS="tests/core -k words" for some)
ifeq ($(strip $(ARGS)),)
	@$(BIN)/python -m pytest -n 3 --dist loadfile --ignore tests/e2e
	@$(BIN)/python -m pytest tests/e2e
else
	@$(BIN)/python -m pytest $(ARGS)
endif

ready: system dev-env assets ## Only install what the tests need

check: dev-env ## Lint, format, types, import contracts, and generated files that drifted
	@$(BIN)/ruff check --output-format concise --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@rm -rf $(FRESH) && mkdir -p $(FRESH) && cd $(FRESH) && "$(CURDIR)/$(BIN)/python" -m meritorder_api.crd --write
	@$(BIN)/meritorder crd | diff -u --label crds/ --label 'meritorder crd' crds/*.yaml - || $(DRIFTED)
	@diff -ru crds $(FRESH)/crds && diff -ru docs/reference/api.md $(FRESH)/docs/reference/api.md || $(DRIFTED)
	@$(TOOLS) chart.reference
	@$(DASHBOARDS) $(FRESH)/dashboards
	@diff -ru charts/meritorder/dashboards $(FRESH)/dashboards || { echo 'dashboards differ from their code; run: make dashboards' >&2; exit 1; }

crds: run-env ## Write the CRDs and the API reference from the models (then: make chart)
	@$(BIN)/python -m meritorder_api.crd --write

chart: dev-env ## Write what the Helm chart has from elsewhere: its CRDs, and its table of values
	@$(TOOLS) chart.reference --write

dashboards: run-env ## Write Grafana's dashboards from their code (ARGS="--runbooks https://.../runbooks#" for other links)
	@$(DASHBOARDS) $(ARGS)

assets: dev-env ## Get the real servers the tests start: etcd, Kubernetes, Prometheus, kubectl, Helm
	@$(TOOLS) assets $(ASSETS)

bench: dev-env assets ## Run the benchmarks
	@$(TOOLS) bench $(ARGS)

bench-router: dev-env ## Compare the router with others: CPU, latency, streams (ARGS="--only nginx,envoy,meritorder")
	@$(TOOLS) bench router $(ARGS)

stress: ready ## The data plane under load: limits, faults, changes, drain (half an hour; ARGS="-k faults")
	@$(BIN)/python -m pytest tests/stress tests/router -m stress -s $(ARGS)

cluster-up: dev-env assets ## Start etcd, API server and controller manager; print the kubeconfig's path
	@$(TOOLS) servers.cluster up

cluster-down: dev-env ## Stop them and delete their data
	@$(TOOLS) servers.cluster down

kind-up: dev-env ## The same on kind, for people with Docker; print the kubeconfig's path
	@$(TOOLS) servers.kind up

kind-down: dev-env ## Delete the kind cluster
	@$(TOOLS) servers.kind down

image: ## Build the container image with buildah or Docker (BASE=..., IMAGE=..., FILE=image.tar to write it too)
	@requirements/image build
	@$(if $(FILE),requirements/image save $(FILE))

sbom: ## Print what is in the image, as CycloneDX JSON
	@requirements/image sbom

pictures: run-env ## Take the pictures of the README again (needs chromium)
	@$(BIN)/python -m meritorder_cli.images

e2e-slow: ready ## The end-to-end test with a 15 s scrape and a 60 s window (half an hour)
	@$(BIN)/python -m pytest tests/e2e -m slow -s $(ARGS)

lock: dev-env ## Resolve every dependency again (ARGS="--upgrade")
	@$(LOCK) $(ARGS) pyproject.toml -o requirements/run.lock
	@$(LOCK) $(ARGS) pyproject.toml --group dev -c requirements/run.lock -o requirements/dev.lock
	@echo hatchling | $(LOCK) - -c requirements/dev.lock -o requirements/build.lock
	@$(TOOLS) assets --pins | $(LOCK) - -o requirements/assets.lock

clean: ## Delete what was made in this checkout (the user's cache stays)
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

run-env: system
	@$(PYTHON) requirements/environment.py run

dev-env: system
	@$(PYTHON) requirements/environment.py dev

# On Debian and as root, what is missing is installed; otherwise it is named.
system:
	@requirements/system $(if $(filter test ready e2e-slow stress,$(MAKECMDGOALS)),tests,run)
