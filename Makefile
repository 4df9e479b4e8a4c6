# Everything a contributor needs; each target makes for itself what it needs. `make` lists them.
#
# PYTHON=python3.13 chooses the interpreter, ARGS="-k hup" is passed on to pytest,
# JOBS=4 says how many tests run at once; live tests wait much, so more than there are cores.

PYTHON ?= python3
JOBS ?= 6
ARGS ?=

# The environment with the newest Gunicorn; everything but the servers of live tests runs here.
VENV := .venv
# One more for each older Gunicorn that live tests run against.
OLDER := 22 23 25
ENVIRONMENTS := $(OLDER:%=.venvs/gunicorn-%/.ready)

REQUIRES_22 := "gunicorn==22.0.*" "prometheus-client==0.20.*"
REQUIRES_23 := "gunicorn==23.0.*"
REQUIRES_25 := "gunicorn==25.3.*"

empty :=
space := $(empty) $(empty)
INTERPRETERS := $(OLDER:%=$(CURDIR)/.venvs/gunicorn-%/bin/python) $(CURDIR)/$(VENV)/bin/python
export OBSKIT_TEST_PYTHONS = $(subst $(space),:,$(INTERPRETERS))

# Test runs keep their byte code, whatever a container says: pytest rewrites every assertion, and each
# of JOBS processes would do all of them anew.
export PYTHONDONTWRITEBYTECODE =

PIP := -m pip --disable-pip-version-check --quiet install

# What the demo needs, so that nobody waits for more.
DEMO := .venvs/demo

# What builds the site, apart from what it describes.
DOCS := .venvs/docs
# Scripts that its pages would load from other hosts: what draws diagrams, and what lets the search
# work in pages that are opened from the disk. Only npm has them, so it comes with the environment.
SCRIPTS := mermaid@11.17.2/dist/mermaid.min.js iframe-worker@1.0.4/shim/index.js

# Node.js has certificates of its own, and knows those of the machine only if it is told.
CERTIFICATES := /etc/ssl/certs/ca-certificates.crt

# What builds and checks the files for a package index.
DIST := .venvs/dist

# prometheus_client's oldest release alone, to be found before the newest one.
OLDEST_CLIENT := .venvs/oldest-client
# The tests of what depends on its releases; the live tests of Gunicorn 22 have that release too.
OF_CLIENTS := tests/unit/values tests/unit/scrape/test_default_registry.py \
	tests/unit/front/test_multiprocess.py tests/unit/front/test_replace_collector.py \
	tests/conformance/test_chosen_differences.py tests/conformance/test_collector.py \
	tests/conformance/test_exemplars.py tests/conformance/test_repeated_keys.py \
	tests/conformance/test_removal_histories.py

# A FastAPI that copies the routes of routers that it includes, with a Starlette that does not say
# which of its routes has matched; to be found before the newest ones.
OLDER_FASTAPI := .venvs/older-fastapi

.PHONY: help run test test-oldest test-quick check generate format docs bench soak matrix dist clean
.DELETE_ON_ERROR:

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(DEMO)/.ready  ## Run the demo application with four workers; Ctrl-C stops it
	@echo "Open http://127.0.0.1:8000/ for the demo, and http://127.0.0.1:9764/ to watch its metrics."
	@cd examples/demo && exec ../../$(DEMO)/bin/gunicorn --config gunicorn.conf.py app:application

test: $(VENV)/.ready $(ENVIRONMENTS) $(OLDER_FASTAPI)/.ready  ## Run all tests but the long ones, on four releases of Gunicorn
	@$(VENV)/bin/python -m compileall -q obskit_gunicorn  # once, and not in each server of a test
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal -m "not load" $(ARGS)
	@$(if $(ARGS),,$(MAKE) --no-print-directory test-oldest)

test-oldest: $(VENV)/.ready $(OLDEST_CLIENT)/.ready $(OLDER_FASTAPI)/.ready  ## Run the tests that depend on prometheus_client or FastAPI with older releases
	PYTHONPATH=$(CURDIR)/$(OLDEST_CLIENT) $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal \
		-m "not live and not load" $(OF_CLIENTS) $(ARGS)
	PYTHONPATH=$(CURDIR)/$(OLDER_FASTAPI) $(VENV)/bin/python -m pytest \
		tests/unit/gunicorn/test_routes.py $(ARGS)

test-quick: $(VENV)/.ready  ## Run unit and conformance tests, which start no Gunicorn: less than a minute
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal -m "not live and not load" \
		--ignore=tests/load $(ARGS)

check: $(VENV)/.ready  ## Check style, format and types; changes nothing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

generate: $(VENV)/.ready  ## Write what is made of the code and of the newest Gunicorn
	$(VENV)/bin/python docs/generate_settings.py
	$(VENV)/bin/python docs/generate_hooks.py
	$(VENV)/bin/python docs/generate_options.py
	$(VENV)/bin/python docs/generate_rules.py

pictures: $(VENV)/.ready  ## Take the pictures of the documentation; needs chromium and prometheus
	@$(VENV)/bin/python $(PIP) --group pictures
	$(VENV)/bin/python docs/take_pictures.py

format: $(VENV)/.ready  ## Format the code, and mend what can be mended by itself
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(DOCS)/.ready  ## Build the site of the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict --clean  # --quiet would let warnings pass

bench: $(VENV)/.ready  ## Run the benchmarks
	@$(VENV)/bin/python $(PIP) --group bench || echo "Without what cannot be installed, then."
	@for benchmark in benchmarks/*.py; do \
		$(VENV)/bin/python -m "benchmarks.$$(basename "$$benchmark" .py)" || exit 1; done

soak: $(VENV)/.ready $(ENVIRONMENTS) $(OLDER_FASTAPI)/.ready  ## Run the long tests, and all that make test leaves out
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m load $(ARGS)

matrix: $(VENV)/.ready  ## Run the wheel with every release that it claims, in pairs; needs Python 3.10 to 3.13
	$(VENV)/bin/python -m tests.matrix --jobs $(JOBS) $(ARGS)

dist: $(VENV)/.ready $(DIST)/.ready  ## Build wheel and sdist into dist/, check them, and test them as installed
	rm -rf dist
	$(DIST)/bin/python -m build
	$(DIST)/bin/python -m twine check --strict dist/*
	$(DIST)/bin/check-wheel-contents dist/*.whl
	OBSKIT_TEST_DIST=$(CURDIR)/dist OBSKIT_TEST_PYTHONS=$(CURDIR)/$(VENV)/bin/python \
		$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal tests/dist $(ARGS)

clean:  ## Remove everything that the other targets have made
	rm -rf $(VENV) .venvs dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is made anew when its requirements may have changed, and left alone otherwise.
# pip is renewed first: that of an older Python does not know dependency groups.

$(VENV)/.ready: pyproject.toml Makefile
	@echo "Making $(VENV), once"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python $(PIP) --upgrade "pip>=25.1"
	@$(VENV)/bin/python $(PIP) --editable . --group dev
	@touch $@

.venvs/gunicorn-%/.ready: pyproject.toml Makefile
	@echo "Making $(@D), once"
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python $(PIP) --upgrade "pip>=25.1"
	@$(@D)/bin/python $(PIP) --editable . --group servers $(REQUIRES_$*)
	@touch $@

$(DEMO)/.ready: pyproject.toml Makefile
	@echo "Making $(@D), once"
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python $(PIP) --editable ".[cli]"
	@touch $@

$(DOCS)/.ready: pyproject.toml Makefile
	@echo "Making $(@D), once"
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python $(PIP) --upgrade "pip>=25.1"
	@$(@D)/bin/python $(PIP) --group docs
	@mkdir -p $(@D)/share/scripts
	@PATH="$(CURDIR)/$(@D)/bin:$$PATH"; set -e; cd $(@D)/share/scripts; \
	export NODE_EXTRA_CA_CERTS="$${NODE_EXTRA_CA_CERTS-$(wildcard $(CERTIFICATES))}"; \
	for script in $(SCRIPTS); do \
		npm pack --silent --fetch-retries 1 "$${script%%/*}" >/dev/null; \
		tar -xzf *.tgz "package/$${script#*/}"; \
		mv "package/$${script#*/}" "$${script%%@*}.js"; \
		rm -r *.tgz package; done
	@touch $@

$(DIST)/.ready: pyproject.toml Makefile
	@echo "Making $(@D), once"
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python $(PIP) --upgrade "pip>=25.1"
	@$(@D)/bin/python $(PIP) --group dist
	@touch $@

$(OLDEST_CLIENT)/.ready: $(VENV)/.ready
	@rm -rf $(@D)
	@$(VENV)/bin/python $(PIP) --no-deps --target $(@D) "prometheus-client==0.20.*"
	@touch $@

$(OLDER_FASTAPI)/.ready: $(VENV)/.ready
	@rm -rf $(@D)
	@$(VENV)/bin/python $(PIP) --no-deps --target $(@D) "fastapi==0.115.*" "starlette==0.46.*"
	@touch $@
