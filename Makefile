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

# What clang-format looks at.
CPP := $(sort $(shell find csrc tests/simt -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh'))

.PHONY: install demo test test-integrations test-install test-oldest bench bench-integrations lint docs dist wheels \
	parity compile-matrix compile-oldest forecast tables clean help

help:
	@echo "make install  the virtual environment .venv with everything, which the others make by themselves too"
	@echo "make demo    generate a sample set, train a light model for a few minutes, draw what it sees"
	@echo "make test    run the tests on the CPU"
	@echo "make test-integrations   run the tests with other people's packages, each in an environment of its own"
	@echo "make test-install   run the install lines of docs/integrations.md in environments with torch alone"
	@echo "make test-oldest   a selection of the operations' tests with the oldest torch and Triton that are supported"
	@echo "make bench   measure into benchmarks/results (ARGS='-k atss' and the like; docs/benchmarks.md)"
	@echo "make bench-integrations   the same for other people's detectors, with and without this project's operations"
	@echo "make lint    ruff, clang-format, mypy"
	@echo "make docs    build the site of docs/ into build/docs; a warning is an error"
	@echo "make dist    an sdist, the wheel without native code, and one for this Python and machine, in dist/"
	@echo "make wheels  the same for every Python, in manylinux containers (docs/releases.md)"
	@echo "make parity           how far every kernel is from its definition, and how far it may be"
	@echo "make compile-matrix   compile every kernel for every architecture, and write docs/kernels.md, docs/forecast.md"
	@echo "make compile-oldest   compile the Triton kernels with the oldest Triton that is supported: none may spill"
	@echo "make forecast         predict the kernels' times from their machine code, and write docs/forecast.md"
	@echo "make tables           write the tables of README.md, docs/kernels.md and docs/models.md anew"

install: $(STAMP)

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

test-install: $(STAMP)
	$(BIN)/python .ci/install_page.py mmdet .venv-install/mmdet

.PRECIOUS: $(INTEGRATION_VENV)/%/.installed

# The oldest torch and Triton that are supported (.ci/oldest.txt), in an environment of its own. What may differ between
# versions: registration, torch.compile, autograd, the interpreter; and of the numbers a selection.
OLDEST_VENV := .venv-oldest
OLDEST_TESTS ?= test_backends or test_host or test_native or test_one_pass or (cpu and (full_graph or one_graph \
	or other_image_sizes or layouts_and_dtypes or boxes_of_every_kind or (TestDouble and test_parity)))

test-oldest: $(OLDEST_VENV)/.installed
	OMP_NUM_THREADS=1 GFLV2_SIMT_LIBRARY= $(OLDEST_VENV)/bin/python -m pytest $(TEST_ARGS) tests/ops -k "$(OLDEST_TESTS)"

$(OLDEST_VENV)/.installed: .ci/oldest.txt .ci/integration-venv .ci/cuda_stand_ins.py | $(STAMP)
	@.ci/integration-venv "$(BIN)/python" "$(OLDEST_VENV)" .ci/oldest.txt
	@$(OLDEST_VENV)/bin/python .ci/cuda_stand_ins.py
	@touch $@

bench: $(STAMP)
	$(BIN)/python -m pytest -c benchmarks/pytest.ini benchmarks/bench.py $(ARGS)
	$(BIN)/python -m benchmarks.report

bench-integrations: $(filter $(INTEGRATIONS:%=bench-integration-%),$(patsubst benchmarks/integrations/%.py,bench-integration-%,$(wildcard benchmarks/integrations/*.py)))
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.integrations.guide

bench-integration-%: $(INTEGRATION_VENV)/%/.installed
	$(INTEGRATION_VENV)/$*/bin/python -m pytest -c benchmarks/pytest.ini benchmarks/bench.py --integration $* $(ARGS)

# The first mypy goes through the files that pyproject.toml names, the second one through a user's call sites.
lint: $(STAMP) .clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typing/use.py

docs: $(STAMP)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs

# The sdist, and from it the wheels. A wheel that is asked for must have its library.
dist: $(STAMP)
	GFLV2_BUILD_NATIVE=0 $(BIN)/python -m build --outdir dist
	GFLV2_BUILD_NATIVE=1 $(BIN)/python -m build --wheel --outdir dist

# pyproject.toml has the settings. Needs Docker or Podman.
wheels: dist
	$(BIN)/python -m pip install --quiet cibuildwheel
	$(BIN)/cibuildwheel --platform linux --output-dir dist

parity: $(STAMP)
	$(BIN)/python -m tests.ops.parity_table $(PARITY_ARGS)

compile-matrix: $(STAMP)
	$(BIN)/python -m tests.kernels.matrix $(MATRIX_ARGS)

# With the oldest Triton: it spills where the newest does not. For one architecture, which takes a minute.
compile-oldest: $(OLDEST_VENV)/.installed
	$(OLDEST_VENV)/bin/python -m tests.kernels.matrix --check --triton-only --architectures 90

forecast: $(STAMP)
	$(BIN)/python -m tests.kernels.forecast $(FORECAST_ARGS)

tables: $(STAMP)
	$(BIN)/python -m tests.test_readme

clean:
	rm -rf build dist *.egg-info gflv2/_native*.so gflv2/_build.json .mypy_cache .ruff_cache

$(BIN)/python:
	@.ci/venv "$(PYTHON)" "$(VENV)"

# An editable install: Python files need no second install, a change of the native sources rebuilds the library.
$(STAMP): $(BIN)/python $(NATIVE)
	$(BIN)/python -m pip install --quiet -e ".[train,test,dev,docs]"
	@$(BIN)/python -m gflv2.env
	@touch $@
