# make quickstart: train a proxy-normalized network on real images; sets everything up first.
# make test:       all that CI runs, in both environments; sets everything up first.
PYTHON ?= python3

.PHONY: quickstart test test-ipu format clean

quickstart: .venv/installed
	# One thread: the tensors are too small to be worth sharing out.
	OMP_NUM_THREADS=1 .venv/bin/python run_ipu.py train configs/quickstart.yaml --overwrite

test: .venv-nox/installed
	.venv-nox/bin/nox

# On a machine with IPUs, with the Poplar SDK enabled and its PopTorch installed for $(PYTHON).
test-ipu:
	$(PYTHON) -m pip install --editable .[test]
	$(PYTHON) -m pytest --backend ipu

format: .venv-nox/installed
	.venv-nox/bin/nox --session format

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable .
	touch $@

.venv-nox/installed: Makefile
	$(PYTHON) -m venv .venv-nox
	.venv-nox/bin/python -m pip install --quiet "nox>=2024.4.15"
	touch $@

clean:
	rm -rf .venv .venv-nox .nox build *.egg-info
