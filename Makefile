# make demo    set up, build, and compare an echo server on the ring with stock trio
# make test    set up, build, and run the tests; what .ci/run calls; ARGS="pytest mypy": only these
# make test-all  the same, and what does not fit into a quarter of an hour
# make fuzz SECONDS=600  random plans by seed, on from where the last call ended; ARGS="--jobs 1"
# make mutations  break the product on purpose, line by line: some test must see each; ARGS="WORD"
# make sanitize  sanitizers, a guard of memory and gcc's own look, under tests; ARGS="guard": only that
# make taken-out  each cure of what strangers do, taken out: some generator finds it again
# make kernels KERNEL=6.16.3  ARGS, for Python, on another Linux under qemu: ARGS="-m pytest ..."
# make counts  instructions per operation, by callgrind, beside the record; ARGS="--repeat 10"
# make bench   every scenario against every peer, some hours; `make bench 64x64B idle`: only these,
#              QUICK=1: a part under 5 minutes, ARGS="--bars": what it is held to, ARGS=--list: names
# make bench-page  docs/benchmarks.md, its plots and the README's from what `make bench` has found
# make bench-gain  what callback servers withstand: many and hostile clients; ARGS="hostile"
# make matrix  trio's own suite on the oldest and newest trio and on each Python at hand
# make anyio   anyio's own suite on the oldest and newest anyio, by each way to the ring
# make build   the wheel, in dist/
# make clean   remove all that these made
#
# PYTHON names the interpreter, VENV the environment: make test PYTHON=python3.13 VENV=.venv313

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
SECONDS ?= 600
KERNEL ?= --list
QUICK ?=

BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard csrc/*.c csrc/*.h csrc/*.py csrc/hot/*.c csrc/hot/*.h)

.PHONY: demo test test-all fuzz mutations taken-out sanitize kernels counts bench
.PHONY: bench-page bench-gain matrix anyio build clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	$(BIN)/python -m benchmarks.demo $(ARGS)

test: $(VENV)/test.stamp
	$(BIN)/python tests/run_all.py $(ARGS)

test-all: $(VENV)/test.stamp
	$(BIN)/python tests/run_all.py --all $(ARGS)

fuzz: $(VENV)/test.stamp
	$(BIN)/python tests/fuzz.py --seconds $(SECONDS) $(ARGS)

mutations: $(VENV)/test.stamp
	$(BIN)/python tests/mutations.py $(ARGS)

sanitize: $(VENV)/test.stamp
	$(BIN)/python tests/sanitize.py $(ARGS)

taken-out: $(VENV)/test.stamp
	$(BIN)/python tests/taken_out.py $(ARGS)

kernels: $(VENV)/test.stamp
	$(BIN)/python tests/kernels.py $(KERNEL) $(ARGS)

counts: $(VENV)/test.stamp
	$(BIN)/python tests/counts.py $(ARGS)

# The words behind `bench` are names of scenarios, and no targets.
ifeq (bench,$(firstword $(MAKECMDGOALS)))
SCENARIOS := $(wordlist 2,$(words $(MAKECMDGOALS)),$(MAKECMDGOALS))
.PHONY: $(SCENARIOS)
$(SCENARIOS): ; @:
endif

bench: $(VENV)/bench.stamp $(VENV)/rloop.stamp
	$(BIN)/python -m benchmarks $(strip $(foreach name,$(SCENARIOS),'$(name)') $(if $(QUICK),--quick) $(ARGS))

bench-page: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks --publish

bench-gain: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks.gain $(ARGS)

matrix: $(VENV)/test.stamp
	$(BIN)/python tests/trio_suite/matrix.py $(ARGS)

anyio: $(VENV)/test.stamp
	$(BIN)/python tests/anyio_suite/releases.py $(ARGS)

build: $(BIN)/python
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) .matrix .anyio_suite .kernels .seeds build dist src/*.egg-info src/uring_trio/*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	$(MAKE) -C csrc/tests clean
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@echo "making an environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)

# One stamp for each extra: the package is installed again, and its C rebuilt, after an
# edit to what it is built from, and only then. pip tells what it does, since it takes a while.
EXTRAS = $*
$(VENV)/test.stamp: EXTRAS = test,ecosystem
$(VENV)/%.stamp: $(SOURCES) | $(BIN)/python
	@echo "installing into $(VENV), and building the C extension: this takes a minute or two"
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

# A peer that there are only wheels of for some; the benchmark says so where it is missing.
$(VENV)/rloop.stamp: | $(VENV)/bench.stamp
	-$(BIN)/python -m pip install --disable-pip-version-check --only-binary :all: rloop
	@touch $@
