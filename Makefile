# Every target sees to .venv first; that costs nothing when nothing has changed. `make PYTHON=python3.12 test` chooses
# the interpreter that .venv is made with.
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help install demo demo-dense test lint format clean distclean

help:
	@echo "make demo        train a select-and-pack Mask R-CNN on the Shapes data set, evaluate it and draw what it selects"
	@echo "make demo-dense  the same for the dense twin of equal depth, to compare with"
	@echo "make test        all tests"
	@echo "make lint        ruff and the type check; 'make format' mends what ruff can"
	@echo "make install     .venv with the tested set (the others do it themselves); PYTHON=... chooses the interpreter"
	@echo "make clean       remove caches and builds; 'make distclean' removes .venv as well"

# A PYTHON that was asked for must be the one in .venv; the default takes what is there.
install:
	@$(PYTHON) tools/install.py $(if $(filter file,$(origin PYTHON)),,--same-python)

demo: install
	.venv/bin/python tools/demo.py

demo-dense: install
	.venv/bin/python tools/demo.py --dense

test: install
	.venv/bin/python -m pytest

lint: install
	PYTHON=.venv/bin/python dev/linter.sh

format: install
	.venv/bin/python -m ruff check --fix .
	.venv/bin/python -m ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv
