# make demo: sets everything up and does the main job.  make test: sets everything up and passes the tests.
PYTHON ?= python3
VENV := .venv
VENV214 := .venv-tflite-2.14
BIN := $(VENV)/bin
DEMO_OUT ?= demo-out
# one thread per numeric library: results don't depend on it, and tests run in parallel
export OMP_NUM_THREADS ?= 1

# environments are rebuilt when what they are made from changes
KEY := $(shell cat pyproject.toml constraints.txt constraints-tflite-2.14.txt | sha256sum | cut -c1-16)
STAMP := $(VENV)/.ready-$(KEY)
STAMP214 := $(VENV214)/.ready-$(KEY)

.PHONY: setup demo android-assets test check bench heavy clean

setup: $(STAMP) $(STAMP214)

$(STAMP):
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	rm -f $(VENV)/.ready-*
	touch $@

# tflite-runtime 2.14.0 needs numpy below 2, so it lives in an environment of its own
$(STAMP214):
	test -x $(VENV214)/bin/python || $(PYTHON) -m venv $(VENV214)
	$(VENV214)/bin/python -m pip install --quiet --disable-pip-version-check -r constraints-tflite-2.14.txt
	rm -f $(VENV214)/.ready-*
	touch $@

demo: setup
	$(BIN)/qwtv2-edge demo --out $(DEMO_OUT)

# what the app in demo_android shows
android-assets: setup
	$(BIN)/qwtv2-edge demo --out $(DEMO_OUT) --android-assets demo_android/app/src/main/assets/qwtv2

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

heavy: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	for f in tests/benchmarks/bench_*.py; do $(BIN)/python $$f || exit 1; done

clean:
	rm -rf $(VENV) $(VENV214) $(DEMO_OUT) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
