# One entry point for everything a developer runs. Needs Python >= 3.11 and make; does its own set-up in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

.PHONY: demo test aarch64 accelerators soak conformance bench lint types format imports freeze check-frozen resolve pins bundles clean

demo: $(VENV)/.run ## See it work: generated camera, own model, embedded broker
	$(BIN)/holdfast demo $(ARGS)

test: $(VENV)/.dev lint types imports ## Lint, types, import contracts, every test: three at a time, since they wait more than they compute
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

aarch64: | $(VENV)/bin/python ## An arm64 system under emulation, for the tests that run the agent there; needs root, mmdebstrap and qemu-user-static
	PYTHON=$(BIN)/python packaging/aarch64.sh

# Vendors' providers for Linux on x86-64: Qualcomm's runs its NPU in software there, the classic OpenVINO on any CPU.
ACCELERATORS := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),.accelerators/plugins/.done .accelerators/openvino/.done)

accelerators: $(ACCELERATORS) ## Real providers that tests use, 650 MB, in folders of their own beside .venv

.accelerators/%/.done: requirements/accelerators-%.txt | $(VENV)/bin/python
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target $(@D) --requirement $<
	touch $@

SOAKS := tests/e2e/test_kill.py tests/e2e/test_power_cuts.py tests/e2e/test_update_kill.py tests/e2e/test_interrupted_download.py \
         tests/e2e/test_bad_bundles.py tests/e2e/test_flood.py tests/update/test_fuzz.py tests/mqtt/test_fuzz.py tests/mqtt/test_pieces.py

soak: $(VENV)/.dev ## Power cuts, kill -9 and fuzzing in their full numbers, some hours
	HOLDFAST_SOAK=1 $(BIN)/pytest $(SOAKS) -s $(ARGS)

conformance: $(VENV)/.dev ## The outside judge of our TUF client, over HTTP and MQTT; tests/conformance/run.py says what it needs
	$(BIN)/python tests/conformance/run.py $(ARGS)

bench: $(VENV)/.dev ## Ratios against peers and ceilings, as one table
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev ## Which package may import which
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

freeze: $(VENV)/.dev ## One file that needs no Python: dist/holdfast
	$(BIN)/pyinstaller --noconfirm --clean --distpath dist --workpath build/freeze packaging/holdfast.spec

check-frozen: ## Run the frozen demo with no Python on the path
	packaging/check_frozen.sh dist/holdfast

bundles: $(VENV)/.dev ## Build the bundles that ship with Holdfast from their recipes
	$(BIN)/holdfast bundle build bundles/recipes/parcels
	$(BIN)/holdfast bundle build bundles/recipes/bearing

resolve: $(VENV)/.dev ## Prove that every supported system finds its wheels
	packaging/resolve.sh

pins: $(VENV)/.dev ## Renew the pinned requirements
	packaging/pin.sh

clean:
	rm -rf $(VENV) .accelerators build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# The pins hold hashes, so that what was tested is what gets installed.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Holdfast needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/run.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/run.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt
	touch $@
