# Each target sets up .venv from the lock first; nothing is taken from the machine but Python 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint lock clean

setup: .venv/ready

.venv/ready: requirements.lock requirements-uv.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes --no-deps -r requirements-uv.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --compile-bytecode --require-hashes \
		requirements.lock requirements-uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/lifelist demo

# Two files at a time: a test that starts a server mostly waits for it. tests/conftest.py says what goes together.
test: setup
	$(BIN)/python -m pytest -n 2

.types: setup
	mkdir -p .types/lifelist
	ln -sf ../../lifelist/__init__.py ../../lifelist/py.typed .types/lifelist/
	for p in exporter training serving monitoring deploy client benchmarks; do ln -sfn ../../$$p .types/lifelist/$$p; done

lint: .types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Resolves pyproject.toml anew; the locks hold exact versions and hashes, and name no index.
lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --all-extras --no-header \
		--no-emit-index-url --output-file requirements.lock pyproject.toml
	echo "uv==0.13.9" | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --output-file requirements-uv.lock -

clean:
	rm -rf .venv .types build *.egg-info .pytest_cache .mypy_cache .ruff_cache
