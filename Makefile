# make quickstart: train a proxy-normalized network on real images; sets everything up first.
# make test:       all that CI runs, in both environments; sets everything up first.
# make docs:       the documentation as a site, in build/site.
# make test-ipu:   on a machine with IPUs, what is to be tried there, in order.
PYTHON ?= python3

.PHONY: quickstart test docs test-ipu format clean

quickstart: .venv/installed
	# One thread: the tensors are too small to be worth sharing out.
	OMP_NUM_THREADS=1 .venv/bin/python run_ipu.py train configs/quickstart.yaml --overwrite

# What uses one core, two at a time; then the tests, which use all.
test: .venv-nox/installed
	$(MAKE) --jobs=2 session-types-ipu session-types-today session-lint session-docs
	.venv-nox/bin/nox --session tests-ipu tests-today

session-%: .venv-nox/installed
	.venv-nox/bin/nox --session $*

docs: .venv-nox/installed
	.venv-nox/bin/nox --session docs

# On a machine with IPUs, with the Poplar SDK enabled and its PopTorch installed for $(PYTHON):
# stage by stage up to the first failure, and a report to send (docs/hardware.md).
test-ipu:
	$(PYTHON) -m pip install --editable .[test]
	$(PYTHON) tests/hardware/run.py --report ipu-report.md

format: .venv-nox/installed
	.venv-nox/bin/nox --session format

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable .
	touch $@

.venv-nox/installed: Makefile
	$(PYTHON) -m venv .venv-nox
	.venv-nox/bin/python -m pip install --quiet "nox>=2024.10.9"
	touch $@

clean:
	rm -rf .venv .venv-nox .nox build *.egg-info
