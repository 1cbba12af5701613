# demo, test, bench, lint and the rest: each does its own set-up, a virtual environment in .venv with the newest torch from PyPI.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two processes of one thread each: with two threads in both, they wait for each other's turns and take twice as long.
# A test that needs more threads asks for them itself.
TEST_ARGS ?= -n 2 --dist worksteal
NATIVE := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f 2>/dev/null)

# A package whose integration is tested in an environment of its own: one file in tests/integrations/requirements.
INTEGRATIONS := $(basename $(notdir $(wildcard tests/integrations/requirements/*.txt)))
INTEGRATION_VENV := .venv-integrations

.PHONY: demo test test-integrations bench lint parity compile-matrix kernels-table clean help
.PHONY: bench-integrations

help:
	@echo "make demo    generate a sample set, train a light model for a few minutes, draw what it sees"
	@echo "make test    run the tests on the CPU"
	@echo "make test-integrations   run the tests with other people's packages, each in an environment of its own"
	@echo "make bench   measure into benchmarks/results (ARGS='-k atss' and the like; docs/benchmarks.md)"
	@echo "make bench-integrations   the same for other people's detectors, with and without this project's operations"
	@echo "make lint    ruff"
	@echo "make parity           how far every kernel is from its definition, and how far it may be"
	@echo "make compile-matrix   compile every kernel for every architecture, and write docs/kernels.md"
	@echo "make kernels-table    write the README's table of kernels anew"

demo: $(STAMP)
	$(BIN)/python -m gflv2.demo $(DEMO_ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_ARGS)

test-integrations: $(INTEGRATIONS:%=test-integration-%)

# make test-integration-mmdet: one of them.
test-integration-%: $(INTEGRATION_VENV)/%/.installed
	$(INTEGRATION_VENV)/$*/bin/python -m pytest -c tests/integrations/pytest.ini --rootdir=. tests/integrations/$* $(ARGS)

$(INTEGRATION_VENV)/%/.installed: tests/integrations/requirements/%.txt .ci/integration-venv | $(STAMP)
	@.ci/integration-venv "$(BIN)/python" "$(INTEGRATION_VENV)/$*" "$<"
	@touch $@

.PRECIOUS: $(INTEGRATION_VENV)/%/.installed

bench: $(STAMP)
	$(BIN)/python -m pytest -c benchmarks/pytest.ini benchmarks/bench.py $(ARGS)
	$(BIN)/python -m benchmarks.report

bench-integrations: $(filter $(INTEGRATIONS:%=bench-integration-%),$(patsubst benchmarks/integrations/%.py,bench-integration-%,$(wildcard benchmarks/integrations/*.py)))
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.integrations.guide

bench-integration-%: $(INTEGRATION_VENV)/%/.installed
	$(INTEGRATION_VENV)/$*/bin/python -m pytest -c benchmarks/pytest.ini benchmarks/bench.py --integration $* $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

parity: $(STAMP)
	$(BIN)/python -m tests.ops.parity_table $(PARITY_ARGS)

compile-matrix: $(STAMP)
	$(BIN)/python -m tests.kernels.matrix $(MATRIX_ARGS)

kernels-table: $(STAMP)
	$(BIN)/python -m tests.test_readme

clean:
	rm -rf build dist *.egg-info gflv2/_native*.so gflv2/_build.json

$(BIN)/python:
	@.ci/venv "$(PYTHON)" "$(VENV)"

# An editable install: Python files need no second install, a change of the native sources rebuilds the library.
$(STAMP): $(BIN)/python $(NATIVE)
	$(BIN)/python -m pip install --quiet -e ".[train,test,dev]"
	@$(BIN)/python -m gflv2.env
	@touch $@
