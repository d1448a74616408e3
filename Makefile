# One command for each thing that a developer does. `make` alone lists them.
#
#   make demo PYTHON=python3.12
#   make test PIP_TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
#
# PyPI's torch for Linux brings several GB of CUDA libraries. On a machine without a GPU, take the CPU
# build: its index is in the second line above.

PYTHON ?= python3
VENV ?= .venv
TORCH_VERSION ?= 2.13.0
# How pip finds torch (index options).
PIP_TORCH_ARGS ?=
PIP ?= $(VENV)/bin/python -m pip
PYTEST ?= $(VENV)/bin/python -m pytest
# `make test PYTEST_ARGS="-k ingress"` for a part.
PYTEST_ARGS ?=
# Processes of tests: one a core, but eight at most, since many tests start a whole service; 0 for none beside make's.
TEST_PROCESSES ?= auto
PYTEST_PARALLEL := $(PYTEST) -n $(TEST_PROCESSES) --maxprocesses 8 --dist worksteal

STAMPS := $(VENV)/.stamps

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# -- environment ---------------------------------------------------------------------------------

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS) && touch $@

# torch first and pinned, so that nothing below takes another build of several GB.
$(STAMPS)/torch-$(TORCH_VERSION): $(STAMPS)/venv
	$(PIP) install -q "torch==$(TORCH_VERSION)" $(PIP_TORCH_ARGS)
	touch $@

$(STAMPS)/installed: $(STAMPS)/torch-$(TORCH_VERSION) pyproject.toml
	$(PIP) install -q -e . "torch==$(TORCH_VERSION)"
	touch $@

$(STAMPS)/dev: $(STAMPS)/installed pyproject.toml
	$(PIP) install -q -e ".[dev]" "torch==$(TORCH_VERSION)"
	touch $@

.PHONY: install
install: $(STAMPS)/installed ## make .venv with all that `parakeet-server serve` needs

.PHONY: install-dev
install-dev: $(STAMPS)/dev ## install, and what tests and checks need

# -- what the README promises --------------------------------------------------------------------

.PHONY: demo
demo: $(STAMPS)/installed ## start the whole stack, stream a recording, show the text as it comes
	$(VENV)/bin/python -m parakeet.demo

.PHONY: test
test: $(STAMPS)/dev ## all tests that need no GPU, NeMo or other clients, but the chaos tests; on all cores
	$(PYTEST_PARALLEL) -m "not golden and not chaos and not clients and not containers" $(PYTEST_ARGS)

# The declared bounds of dependencies are tested: `make test` takes the newest versions where $(VENV) is new, the
# next two the lowest. `make test-ingress PYTHON=python3.13 BOUND=newest`
BOUND ?= lowest
INGRESS_VENV ?= .venv-ingress
INGRESS_TESTS := tests/unit/common tests/unit/ingress tests/unit/parakeet tests/fuzz \
  tests/property/test_client_bytes.py tests/property/test_base64.py
.PHONY: test-ingress
test-ingress: ## ingress and clients on the lowest versions of what they need, without a worker's packages
	$(PYTHON) -m venv --clear $(INGRESS_VENV)
	$(INGRESS_VENV)/bin/python requirements/bounds.py $(BOUND) ingress > $(INGRESS_VENV)/requirements.txt
	$(INGRESS_VENV)/bin/python -m pip install -q --only-binary :all: -r $(INGRESS_VENV)/requirements.txt
	$(INGRESS_VENV)/bin/python -m pip install -q --no-deps -e .
	$(INGRESS_VENV)/bin/python -m pytest -n $(TEST_PROCESSES) --maxprocesses 8 $(INGRESS_TESTS) $(PYTEST_ARGS)

# Tests of deploy/ need programs that no part of the service does.
LOWEST_VENV ?= .venv-lowest
LOWEST_TESTS ?= tests
.PHONY: test-lowest
test-lowest: ## tests on the lowest versions of all dependencies but torch
	$(PYTHON) -m venv --clear $(LOWEST_VENV)
	$(LOWEST_VENV)/bin/python requirements/bounds.py lowest all > $(LOWEST_VENV)/requirements.txt
	$(LOWEST_VENV)/bin/python -m pip install -q "torch==$(TORCH_VERSION)" $(PIP_TORCH_ARGS)
	$(LOWEST_VENV)/bin/python -m pip install -q --only-binary :all: -r $(LOWEST_VENV)/requirements.txt \
	  "torch==$(TORCH_VERSION)"
	$(LOWEST_VENV)/bin/python -m pip install -q --no-deps -e .
	$(LOWEST_VENV)/bin/python -m pytest -n $(TEST_PROCESSES) --maxprocesses 8 --dist worksteal \
	  -m "not golden and not chaos and not clients and not containers and not slow" --ignore tests/unit/deploy $(LOWEST_TESTS) $(PYTEST_ARGS)

# -- checks --------------------------------------------------------------------------------------

.PHONY: check
check: $(STAMPS)/dev ## formatting, lint, types, import rules, compose file
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml deploy/compose.tls.yaml

# npm brings the library that draws diagrams in a reader's browser, so that the site loads nothing from another host.
# `make docs PARAKEET_SOURCE_URL=https://HOST/OWNER/NAME/tree/main` lets links to folders lead there.
MERMAID := mermaid@11.12.2
export PARAKEET_SOURCE_URL ?=

build/mermaid/mermaid.esm.min.mjs:
	mkdir -p $(@D)
	cd $(@D) && npm pack --silent $(MERMAID) && tar xzf mermaid-*.tgz --strip-components=2 --exclude='*.map' \
	  package/dist/mermaid.esm.min.mjs package/dist/chunks/mermaid.esm.min && rm mermaid-*.tgz

.PHONY: docs
docs: $(STAMPS)/dev build/mermaid/mermaid.esm.min.mjs ## build the documentation site into build/website
	$(VENV)/bin/sphinx-build -q --fail-on-warning --keep-going -c website -d build/.doctrees . build/website

.PHONY: format
format: $(STAMPS)/dev ## let ruff lay out the code
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# NeMo lives in an environment of its own; the checkpoints and references that it makes are kept, and
# made anew only when tests/golden/oracle changes. `make golden GOLDEN_MODELS="tiny large"` for others.
NEMO_VENV ?= .venv-nemo
GOLDEN_CACHE ?= tests/golden/.cache
GOLDEN_MODELS ?= tiny small prompted variant

$(NEMO_VENV)/.stamps/golden: requirements/golden.txt
	test -x $(NEMO_VENV)/bin/python || $(PYTHON) -m venv $(NEMO_VENV)
	$(NEMO_VENV)/bin/python -m pip install -q "torch==$(TORCH_VERSION)" $(PIP_TORCH_ARGS)
	$(NEMO_VENV)/bin/python -m pip install -q -r requirements/golden.txt
	mkdir -p $(NEMO_VENV)/.stamps && touch $@

.PHONY: golden
golden: $(STAMPS)/dev $(NEMO_VENV)/.stamps/golden ## compare the model with NVIDIA NeMo, stage by stage
	$(NEMO_VENV)/bin/python -m tests.golden.oracle --cache $(GOLDEN_CACHE) $(GOLDEN_MODELS)
	$(NEMO_VENV)/bin/python -m tests.golden.nemo_backend --cache $(GOLDEN_CACHE) $(firstword $(GOLDEN_MODELS))
	$(NEMO_VENV)/bin/python -m tests.golden.phrase_parity --cache $(GOLDEN_CACHE) $(GOLDEN_MODELS)
	PARAKEET_GOLDEN_CACHE=$(GOLDEN_CACHE) PARAKEET_GOLDEN_MODELS="$(GOLDEN_MODELS)" \
	  PARAKEET_NEMO_PYTHON=$(NEMO_VENV)/bin/python $(PYTEST) -m golden $(PYTEST_ARGS)

.PHONY: gpu-test
gpu-test: $(STAMPS)/dev ## tests that need a CUDA device
	$(PYTEST) -m gpu $(PYTEST_ARGS)

# `make chaos CHAOS_SEEDS=0:50 CHAOS_REPORT=FILE`; a failed seed is repeated by CHAOS_SEEDS=SEED:SEED+1.
CHAOS_SEEDS ?= 0:200
CHAOS_REPORT ?= chaos.md
SOAK_MINUTES ?= 30
SOAK_REPORT ?= soak.md

.PHONY: chaos-short
chaos-short: $(STAMPS)/dev ## kill, freeze and cut real processes under load: a few minutes of it
	PARAKEET_CHAOS_SEEDS=0:4 $(PYTEST) -n0 tests/chaos -m chaos -k "not debian"

.PHONY: chaos
chaos: $(STAMPS)/dev ## chaos-short with many seeds, and a report
	$(PYTEST) -n0 tests/chaos -m chaos -k "not seeded"
	$(VENV)/bin/python -m tests.chaos --seeds $(CHAOS_SEEDS) --report $(CHAOS_REPORT)

# Other people's clients, each in an environment of its own with pinned versions, kept in .clients/.
.PHONY: test-clients
test-clients: $(STAMPS)/dev ## run every client of docs/clients.md against a real server
	$(PYTEST) -n0 tests/clients $(PYTEST_ARGS)

# Needs a container engine (Debian: docker.io, docker-compose); without an image registry also debootstrap, as root.
.PHONY: test-compose
test-compose: $(STAMPS)/dev ## build the images, run compose.yaml, kill and replace its containers under streams
	$(PYTEST) -n0 tests/containers -m containers $(PYTEST_ARGS)

.PHONY: soak
soak: $(STAMPS)/dev ## load for SOAK_MINUTES; memory, files, keys and latency over time
	$(VENV)/bin/python -m tests.chaos.soak --minutes $(SOAK_MINUTES) --report $(SOAK_REPORT)

# Leaves in dist/ what is published: sdist, wheel, bill of materials (CycloneDX) and sums. Both are installed in a new
# environment, and serve the demo from there.
RELEASE_VENV ?= .venv-release
SERVED_VENV ?= .venv-served
SERVED := $(abspath $(SERVED_VENV))/bin/python
.PHONY: release-check
release-check: ## build what is published, look into it, install it anew and let it serve
	rm -rf dist build *.egg-info
	$(PYTHON) -m venv --clear $(RELEASE_VENV)
	$(RELEASE_VENV)/bin/python -m pip install -q -r requirements/release.txt
	$(RELEASE_VENV)/bin/python -m build
	$(RELEASE_VENV)/bin/twine check --strict dist/*.tar.gz dist/*.whl
	$(RELEASE_VENV)/bin/check-wheel-contents --toplevel common,gpu_worker,ingress,parakeet dist/*.whl
	$(PYTHON) -m venv --clear $(SERVED_VENV)
	$(SERVED) -m pip install -q "torch==$(TORCH_VERSION)" $(PIP_TORCH_ARGS)
	$(SERVED) -m pip install -q dist/*.tar.gz "torch==$(TORCH_VERSION)"
	cd / && $(SERVED) -m parakeet.demo
	$(SERVED) -m pip install -q --no-deps --force-reinstall dist/*.whl
	cd / && $(SERVED) -m parakeet.demo
	cd / && $(SERVED) -c "from importlib.resources import files; files('ingress').joinpath('page/client/index.js').read_bytes()"
	$(RELEASE_VENV)/bin/cyclonedx-py environment --pyproject pyproject.toml --spec-version 1.6 \
	  --output-reproducible --output-file dist/parakeet-server.cdx.json $(SERVED)
	cd dist && sha256sum -- * > SHA256SUMS

# `make attack ATTACK_SECONDS=60 ATTACK_EACH=3 ATTACK_REPORT=FILE`; two cores, and nothing else on them. Three of each
# kind are 93 attackers: in 30 s of those, p99 was 1.8 times that of streams alone.
ATTACK_SECONDS ?= 600
ATTACK_EACH ?= 1
ATTACK_REPORT ?= attack.md

.PHONY: attack
attack: $(STAMPS)/dev ## attackers of every kind beside honest streams, ten minutes; exit status 1 where they are harmed
	$(VENV)/bin/python -m tests.attack --seconds $(ATTACK_SECONDS) --each $(ATTACK_EACH) --report $(ATTACK_REPORT)

.PHONY: clean
clean: ## remove caches and builds, leave .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .clients
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
