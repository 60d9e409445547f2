# From a machine with nothing but Python: `make demo` shows the gateway, `make test` runs every test.

VENV ?= .venv
COMPILED ?= .venv-compiled
TOX_VENV ?= .tox/bootstrap
TOX_ARGS ?=
# Side by side; what starts gateways and watches their pace has the machine to itself afterwards.
QUICK := lint,types,py311,py312,py313,py314
# What one of them found, since what runs side by side shows nothing unless it fails.
COVERAGE = for data in .tox/py3*/coverage; do COVERAGE_FILE=$$data $${data%coverage}bin/python -m coverage report; break; done
DEMO_ARGS ?=
PEERS ?= .tox/peers
BENCH_ARGS ?=

# The first interpreter that really starts, is 3.11 or newer and can make environments. A name on PATH is not enough:
# version managers leave shims that refuse to run, and Debian packs venv apart from Python.
CANDIDATES := $(PYTHON) python3.13 python3.12 python3.11 python3.14 python3
PROBE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
FIND_PYTHON = python=; for candidate in $(CANDIDATES); do \
	if "$$candidate" -c '$(PROBE)' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	echo "bakerygw needs Python 3.11 or newer with its venv module; none of these will do: $(CANDIDATES)." >&2; \
	echo "On Debian or Ubuntu: apt install python3 python3-venv. Or name one: make PYTHON=/path/to/python3 $@" >&2; \
	exit 1; fi

# Makes the environment $(1), unless it is there and works.
MAKE_VENV = if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
	echo "Making $(1) with $$("$$python" --version)"; "$$python" -m venv --clear $(1); fi

.DEFAULT_GOAL := help
.PHONY: help demo install compiled test bench autobahn screenshot clean

help: ## This list.
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/installed ## The gateway with demo services, on loopback. More options: make demo DEMO_ARGS="..."
	@exec $(VENV)/bin/twistd -n --pidfile= bakerygw --demo $(DEMO_ARGS)

install: $(VENV)/installed ## The environment .venv, with the package installed from this folder.

compiled: $(COMPILED)/installed ## The environment .venv-compiled, with the package compiled, which is faster. Needs gcc.

test: $(TOX_VENV)/installed ## Every test, lint and types, through tox. One part: make test TOX_ARGS="-e py311"
	$(if $(TOX_ARGS),$(TOX_VENV)/bin/tox run $(TOX_ARGS),\
		$(TOX_VENV)/bin/tox run-parallel --parallel 2 --parallel-no-spinner -e $(QUICK) && { $(COVERAGE); } && \
		$(TOX_VENV)/bin/tox run -e e2e)

bench: $(VENV)/installed $(COMPILED)/installed $(PEERS)/installed ## Every measurement, into docs/performance.md. In a minute: make bench BENCH_ARGS=--quick
	PEERS_PYTHON=$(abspath $(PEERS))/bin/python COMPILED_PYTHON=$(abspath $(COMPILED))/bin/python \
	$(VENV)/bin/python bench/everything.py $(BENCH_ARGS)

autobahn: $(TOX_VENV)/installed ## The Autobahn test suite through the WebSocket bridge, both ways. Needs CPython 2.7 too.
	$(TOX_VENV)/bin/tox run -e autobahn

screenshot: $(TOX_VENV)/installed ## The README's picture of the demo's page, made anew by its test. Needs Chromium.
	SCREENSHOT=$(abspath docs/img/demo.png) $(TOX_VENV)/bin/tox run -e e2e -- tests/e2e/test_demo_page_e2e.py

clean: ## Removes the environments and what builds and tests left behind.
	rm -rf $(VENV) $(COMPILED) .tox build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Editable, so that a changed source is served at the next start; made anew only when what it needs may have changed.
$(VENV)/installed: setup.py pyproject.toml
	@set -e; $(FIND_PYTHON); $(call MAKE_VENV,$(VENV))
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# Not editable: what is compiled does not follow its sources, so it is made anew when one of them changes.
$(COMPILED)/installed: setup.py pyproject.toml $(wildcard bakerygw/*.py bakerygw/*/*.py bakerygw/*/*/*.py)
	@set -e; $(FIND_PYTHON); $(call MAKE_VENV,$(COMPILED))
	rm -rf build # what an earlier build has left there is of other sources
	BAKERYGW_COMPILE=1 $(COMPILED)/bin/python -m pip install --quiet --disable-pip-version-check .
	@touch $@

# What the Python peers of the measurements import.
$(PEERS)/installed: bench/requirements.txt
	@set -e; $(FIND_PYTHON); $(call MAKE_VENV,$(PEERS))
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(TOX_VENV)/installed:
	@set -e; $(FIND_PYTHON); $(call MAKE_VENV,$(TOX_VENV))
	$(TOX_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'tox>=4.30'
	@touch $@
