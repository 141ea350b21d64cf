# Set-up and the main job, the tests, the UI. Needs Python >= 3.11, pip and make; nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HOME_DIR ?= $(if $(APRIEL_HOME),$(APRIEL_HOME),$(CURDIR)/.apriel)
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test soak test-ray ui lint clean

demo: $(VENV)/.installed
	$(BIN)/apriel run --recipe quickstart --home "$(HOME_DIR)"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The long versions: hours. What each found is in benchmarks/results/soak_*.json.
SOAK_HOME ?= $(HOME_DIR)
soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak.kills --kills 200
	$(BIN)/python -m tests.soak.kills --kills 20 --start exec --out benchmarks/results/soak_kills_exec.json
	$(BIN)/python -m tests.soak.crowd --kills 10
	$(BIN)/python -m tests.soak.flat_memory
	$(BIN)/apriel run --recipe quickstart --home "$(SOAK_HOME)"
	$(BIN)/python -m tests.soak.bit_flips --home "$(SOAK_HOME)" --flips 1000
	$(BIN)/python -m pytest -m soak

# On a local Ray cluster of two nodes; Ray is no part of the usual installation.
test-ray: $(VENV)/.installed-dev
	$(PIP_INSTALL) -e '.[ray]'
	$(BIN)/python -m pytest tests/resources/test_ray.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

ui: $(VENV)/.installed
	mkdir -p "$(HOME_DIR)/dagster"
	APRIEL_HOME="$(HOME_DIR)" DAGSTER_HOME="$(HOME_DIR)/dagster" $(BIN)/dagster dev -w workspace.yaml

# torch first and by its exact version: asked for by range, pip takes a build with gigabytes of CUDA libraries.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) "$$(grep '^torch==' constraints.txt)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[dev,hub,lm-eval,serve]'
	touch $@

clean:
	rm -rf $(VENV)
