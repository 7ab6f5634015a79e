# Every target does its own set-up. A second run of a target installs nothing.
VENV ?= .venv
# Empty: the first of python3.11, python3.12 and python3 that fits.
PYTHON ?=
PORT ?= 8000
BUNDLE ?= runs/demo/bundle

export VENV PYTHON
# Packages from elsewhere must not stand in for the pinned ones.
unexport PYTHONPATH PYTHONHOME
python := $(VENV)/bin/python
install = @sh scripts/preflight.sh $(extras) && sh scripts/install.sh $(extras)

.DEFAULT_GOAL := help
.PHONY: help demo test test-browser check docs serve bench constraints clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: extras := service,training
demo: ## install, train on MovieLens-100K and serve the result once (no GPU, no Docker)
	$(install)
	$(python) scripts/demo.py

# A process for each core, so each computes in one thread. A file stays together: its tests share
# what is made for them.
test: on_every_core := --numprocesses auto --maxprocesses 4 --dist loadfile
test: offline := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
test: extras := service,training,test
test: ## install, then run the tests; they are offline
	$(install)
	$(offline) $(python) -m pytest $(on_every_core) $(AGAIN)
	$(offline) $(python) -m pytest $(on_every_core) -m "cluster or monitoring or documents" $(AGAIN)

test-browser: extras := service,training,test,browser
test-browser: ## install, with Chromium for root on Debian, then look at the page in a browser
	$(install)
	@sh scripts/chromium.sh
	HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 $(python) -m pytest -m browser $(AGAIN) tests/browser

check: extras := service,training,test,dev,docs
check: ## install, then lint, check format, types and documents, look for what is not safe
	$(install)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy --strict models training service examples
	$(python) -m bandit -q -r -c pyproject.toml --severity-level medium models training service scripts
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict
	$(python) scripts/audit.py

# Not with --quiet: MkDocs then counts no warnings, and lets broken links pass.
docs: extras := docs
docs: ## install, then build the documentation into site/index.html
	$(install)
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict

serve: extras := service
serve: ## serve BUNDLE (default runs/demo/bundle) on PORT (default 8000)
	$(install)
	$(python) -m service --bundle $(BUNDLE) --port $(PORT)

bench: extras := service,training,test,bench
bench: ## install, then measure; figures depend on the machine
	$(install)
	$(python) -m benchmarks

constraints: ## renew constraints.txt from pyproject.toml
	PYTHON= sh scripts/constraints.sh

clean: ## remove the environment and what tools left; keeps runs/ and downloads
	[ ! -e $(VENV)/pyvenv.cfg ] || rm -rf $(VENV)
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find models training service tests benchmarks scripts -name __pycache__ -prune -exec rm -rf {} +
