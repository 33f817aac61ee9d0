# `make help` lists what there is to do.
PYTHON ?= python3.11
TORCH_VERSION := 2.13.0
# With it, MLflow samples the GPUs.
NVIDIA_ML_VERSION := 13.615.71
PYTORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
READY := .venv/.complete
INSTALL := .venv/bin/python -m pip install --quiet --disable-pip-version-check

# Which build of PyTorch the environment has, cpu unless `TORCH=cuda` is given once; remembered in $(READY).
BUILD := $(or $(TORCH),$(shell cat $(READY) 2>/dev/null),cpu)

# The CPU build by its exact name; where pip already finds it (a mirror, a wheel folder), PyTorch's own index is not asked.
define install_cpu_torch
@$(1) torch==$(TORCH_VERSION)+cpu 2>/dev/null || $(1) torch==$(TORCH_VERSION)+cpu --extra-index-url $(PYTORCH_CPU_INDEX)
endef

.PHONY: help env demo test test-long chaos soak check bench bench-gpu ui serve annotate clean FORCE
.DEFAULT_GOAL := help

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "On a machine with NVIDIA GPUs, once and first: make env TORCH=cuda"

env: $(READY) ## Make .venv from exact pins (CPU build of PyTorch; for GPUs: make env TORCH=cuda)

demo: $(READY) ## Run the whole pipeline in small, on the embedded corpus
	.venv/bin/minillm distill

test: check ## Lint, check types and run the tests, but for those of test-long
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

chaos: $(READY) ## Kill an experiment's processes at 30 random moments, and compare with an undisturbed run (20 minutes)
	.venv/bin/python -m tests.chaos

soak: $(READY) ## Nights on end, with changing data and a fault in most, and what was lost by it (8 hours)
	.venv/bin/python -m tests.soak

test-long: $(READY) ## Run the tests that take minutes each and are no part of `make test`
	.venv/bin/python -m pytest -m long

check: $(READY) ## Lint and check types
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/pyright

bench: $(READY) benchmarks/environments/trl-1.14.2/.complete benchmarks/environments/trl-1.16.0/.complete ## Measure speed and memory against what one could pick instead
	.venv/bin/python -m benchmarks

bench-gpu: $(READY) ## Measure steps, rollouts and generation on one NVIDIA GPU (5 minutes; TRL too, where bench has been made)
	.venv/bin/python -m benchmarks.gpu

ui: $(READY) ## Serve Prefect (port 4200) and MLflow (port 5000) on this machine until Ctrl-C
	.venv/bin/minillm ui

serve: $(READY) ## The same, with the deployments of prefect.yaml and a worker that runs them
	.venv/bin/minillm serve

annotate: $(READY) ## Let people compare the answers of the newest run's methods (port 4400) until Ctrl-C
	.venv/bin/minillm annotate

clean: ## Remove the environments and caches; results in .minillm stay
	rm -rf .venv .pytest_cache .ruff_cache benchmarks/environments/*/
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

ifneq ($(BUILD),$(shell cat $(READY) 2>/dev/null))
$(READY): FORCE
endif

# PyTorch first and by its exact build, so that a machine without a GPU never gets the CUDA packages.
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	@echo "Installing PyTorch $(TORCH_VERSION), $(BUILD) build, and the rest; a few minutes the first time"
ifeq ($(BUILD),cuda)
	.venv/bin/python -m pip uninstall --quiet --yes torch
	$(INSTALL) torch==$(TORCH_VERSION) nvidia-ml-py==$(NVIDIA_ML_VERSION)
else
	$(call install_cpu_torch,$(INSTALL))
endif
	$(INSTALL) --requirement constraints.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@echo $(BUILD) > $@

# TRL in environments of its own: it is measured against, not depended on.
benchmarks/environments/%/.complete: benchmarks/environments/%.txt
	$(PYTHON) -m venv $(@D)
	$(call install_cpu_torch,$(@D)/bin/python -m pip install --quiet --disable-pip-version-check)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
