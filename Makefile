# `make install` is the only set-up: every other target rests on it, and it does nothing when current.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file's tests stay in one worker, so that what they share is made once; the order is that of tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder
STAMP := $(VENV)/.installed

.PHONY: install demo test test-all test-changed test-shuffled coverage breaks check-wheel lint fmt bench assets \
  pretrain-tiny lock clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	touch $@

# Both stages of training in short, pictures and scores, in minutes: see demo/report.html.
demo: install
	$(BIN)/mllmsubj demo --workdir=demo

# Minutes: all but what is marked slow, programs compiled as fast as XLA can compile them.
test: install
	$(PYTEST)

# Hours: everything, programs compiled as users compile them. Run again after a stop, it runs what has not passed yet.
test-all: install
	MLLMSUBJ_TEST_OPTIMIZED=1 $(PYTEST) -p tests.resume --timeout=3600 -m 'not tpu and not gpu'

# The tests that import what has changed since the branch left BASE, uncommitted changes included.
BASE ?= HEAD
test-changed: install
	@files=$$($(BIN)/python -m tests.imports --base=$(BASE)) || exit; \
	if [ -z "$$files" ]; then echo "no test touches what has changed"; else $(PYTEST) $$files; fi

# `make test` in a random order, on three workers, with another hash seed: do tests lean on each other?
test-shuffled: install
	PYTHONHASHSEED=$$(od -An -N2 -tu2 /dev/urandom | tr -d ' ') $(BIN)/python -m pytest -n 3 --dist=loadfile -p randomly

# Lines and branches that `make test` runs, processes that it starts included; by package.
coverage: install
	$(PYTEST) --cov --cov-report=json:coverage.json --cov-report=
	$(BIN)/python -m tests.coverage_table coverage.json

# Deliberate mistakes, each of which the quick tests must notice; says which they do not.
breaks: install
	$(BIN)/python -m tests.breaks.run $(BREAKS)

# What the README says of a package: a wheel, in a fresh environment and an empty folder, draws a picture.
check-wheel: install
	rm -rf build/wheel && mkdir -p build/wheel/empty
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --no-compile --constraint constraints.txt build/wheel/*.whl
	cd build/wheel/empty && PATH="$$PWD/../venv/bin:$$PATH" && mllmsubj --help && \
	  mllmsubj data preview --output=sheet.png --split=test && \
	  mllmsubj generate --checkpoint=tiny --reference=sheet.png --prompt="the thing in the picture, on the moon" \
	    --output=moon.png && test -s moon.png

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fmt: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The numbers of docs/speed.md: an idle machine, please.
bench: install
	$(BIN)/mllmsubj bench --what=sampler --width=768 --tokens=256
	$(BIN)/mllmsubj bench --what=sampler --width=1024 --tokens=1024 --steps=4

# The shipped checkpoint's config and tokenizers, after a change of configs/tiny.py.
assets: install
	$(BIN)/python -m mllmsubj.toyworld.ship

# The tiny model from nothing, on toyworld, and into the package: its parts, then both stages of the method on top of
# them. Hours on two CPU cores; it goes on where it was stopped.
pretrain-tiny: install
	for component in vae probe mllm; do \
	  $(BIN)/mllmsubj pretrain --config=tiny --component=$$component --workdir=pretrained || exit; \
	done
	mkdir -p pretrained/full
	cp pretrained/vae.* pretrained/probe.* pretrained/full/
	$(BIN)/mllmsubj pretrain --config=tiny:full --component=dit --workdir=pretrained/full
	$(BIN)/mllmsubj pretrain --config=tiny --component=dit --workdir=pretrained \
	  --config.pretrain.dit.start_from=pretrained/full
	$(BIN)/mllmsubj pretrain --config=tiny --component=dla --workdir=pretrained
	cp pretrained/*.safetensors pretrained/*.json mllmsubj/assets/tiny/
	$(BIN)/mllmsubj train --config=tiny --workdir=pretrained/subject \
	  --config.data.examples=10000 --config.data.cache=pretrained/cache --config.data.cached_features=all
	$(BIN)/python -m mllmsubj.toyworld.ship --subject=pretrained/subject

# Pins everything that the targets above install. torch's own dependencies stay out of the file, since
# they differ between its CPU and CUDA builds; pip takes those that the chosen build names.
lock: install
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra test --no-annotate --no-header \
	  pyproject.toml | grep -vE '^(nvidia-|cuda-|triton)' > constraints.tmp
	mv constraints.tmp constraints.txt

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .coverage* coverage.json
