# `make demo` and `make test` build .venv if it is missing, install the project into it, and run.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := outputs/demo

.PHONY: demo test soak lint install clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	rm -rf $(DEMO)
	$(BIN)/cl-mofo run --strategy sequential --out $(DEMO)/sequential
	$(BIN)/cl-mofo run --strategy mofo --out $(DEMO)/mofo
	$(BIN)/cl-mofo report $(DEMO) --figures $(DEMO)/figures

# Bounds of times want the machine for themselves. Bytecode is kept: hundreds of processes load it.
RATIOS := tests/test_benchmark_ratios.py
test: export PYTHONDONTWRITEBYTECODE =
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore $(RATIOS) --numprocesses 2 \
		--dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest $(RATIOS)

# Kills 50 runs of each of six strategies by SIGKILL, goes on with them, and compares: 17 minutes on 2 cores.
soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --kills 50 --jobs 2

# mypy reads the package as it is installed, with tasks, strategies and runs in their places.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation \
		--upgrade --target build/typed .
	cd build/typed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p cl_mofo

clean:
	rm -rf .venv build outputs *.egg-info
