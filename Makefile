# A fresh machine needs Python >= 3.11 and these two commands: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
COMMAND_TESTS := $(addprefix parity_tests/test_,cli.py segment.py bench.py bad_input.py paper_commands.py report.py series.py one_judge.py predictions.py)
KERNEL_TESTS := $(addprefix parity_tests/test_kernels_,peak_stimulation.py peak_backprop.py retrieval.py launching.py)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test suite commands kernels compiled lint parity-long mutants clean

# Installing happens again only when what is installed changes, so both targets work offline afterwards. The build tools
# come first and serve the installation itself: an isolated build would fetch its own.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "setuptools>=77" wheel
	$(PIP) --no-build-isolation -e ".[dev]"
	touch $(INSTALLED)

# The five parts share nothing; two go side by side, each with one thread, the longest first.
suite commands kernels compiled: export OMP_NUM_THREADS = 1
test: $(INSTALLED)
	+$(MAKE) --jobs 2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) suite commands kernels compiled lint

suite: $(INSTALLED)
	$(BIN)/python -m pytest --ignore-glob 'parity_tests/test_kernels_*' $(addprefix --ignore=,$(COMMAND_TESTS))

# The command line, mostly: what starts processes.
commands: $(INSTALLED)
	$(BIN)/python -m pytest $(COMMAND_TESTS)

# The GPU kernels on a machine without a GPU: in Triton's interpreter against the oracle, and compiled for a
# GPU of each maker.
kernels: $(INSTALLED)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(KERNEL_TESTS)

compiled: $(INSTALLED)
	$(BIN)/python -m pytest parity_tests/test_kernels_compile.py parity_tests/test_kernels_bench.py

# The comparison of the fast path with the oracle on many more cases: about an hour; that of the kernels another one. Then
# that of the separate implementation, and the kernels compiled for six GPUs.
parity-long: $(INSTALLED)
	$(BIN)/prm parity run --examples 10000 --networks 2000 --json parity-long.json
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(KERNEL_TESTS) --kernel-examples 300
	$(BIN)/prm parity run --implementation prm.parity_tests.scipy_port:port
	$(BIN)/python -m pytest parity_tests/test_kernels_compile.py --all-targets

# Whether the tests would notice: some 200 mistakes, one at a time, in copies of the project. Before a release.
mutants: $(INSTALLED)
	$(BIN)/python -m prm.parity_tests.mutants

# Mypy looks for a package where a folder has its name, and the checkout may have any: a link has the package's.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	mkdir -p $(VENV)/checked
	ln -sfn ../.. $(VENV)/checked/prm
	$(BIN)/mypy

# Photographs first, with a network that others trained on ImageNet's labels, in half a minute. Then from labels to masks
# in a few minutes: draw scenes, train on their labels, judge on masks, look.
demo: $(INSTALLED)
	$(BIN)/prm data photographs demo/photographs
	$(BIN)/prm segment demo/photographs --model efficientnet_lite0 -o demo/gallery
	@echo "Look at demo/gallery/index.html"
	$(BIN)/prm data make-synthetic demo/scenes --train 600 --val 60
	$(BIN)/prm train --data demo/scenes --out demo/network --resume --size 128 --epochs 22 --jitter 1.1 \
	    --network-options '{"widths": [16, 32, 64, 96], "pools": 3}' --lr-features 0.05 --lr-classifier 0.05
	$(BIN)/prm eval --data demo/scenes -c demo/network --cache demo/proposals --json demo/figures.json
	$(BIN)/prm segment demo/scenes/val -c demo/network --cache demo/proposals -o demo/scenes-gallery
	@echo "Look at demo/gallery/index.html, and at demo/scenes-gallery/index.html"

clean:
	rm -rf $(VENV) build dist demo *.egg-info
