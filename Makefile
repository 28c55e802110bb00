# `make install` is the only set-up: every other target rests on it, and it does nothing when current.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint fmt bench assets pretrain-tiny lock clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	touch $@

# Both stages of training in short, pictures and scores, in minutes: see demo/report.html.
demo: install
	$(BIN)/mllmsubj demo --workdir=demo

test: install
	$(BIN)/python -m pytest -n 2

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The numbers of the README's section "Speed": an idle machine, please.
bench: install
	$(BIN)/mllmsubj bench --what=sampler --width=768 --tokens=256
	$(BIN)/mllmsubj bench --what=sampler --width=1024 --tokens=1024 --steps=4

# The shipped checkpoint's config and tokenizers, after a change of configs/tiny.py.
assets: install
	$(BIN)/python -m mllmsubj.assets

# The tiny model from nothing, on toyworld, and into the package: its parts, then both stages of the method on top of
# them. Hours on two CPU cores; it goes on where it was stopped.
pretrain-tiny: install
	for part in vae probe mllm; do \
	  $(BIN)/mllmsubj pretrain --config=configs/tiny.py --part=$$part --workdir=pretrained || exit; \
	done
	mkdir -p pretrained/full
	cp pretrained/vae.* pretrained/probe.* pretrained/full/
	$(BIN)/mllmsubj pretrain --config=configs/tiny.py:full --part=dit --workdir=pretrained/full
	$(BIN)/mllmsubj pretrain --config=configs/tiny.py --part=dit --workdir=pretrained \
	  --config.pretrain.dit.start_from=pretrained/full
	$(BIN)/mllmsubj pretrain --config=configs/tiny.py --part=dla --workdir=pretrained
	cp pretrained/*.safetensors pretrained/*.json mllmsubj/assets/tiny/
	$(BIN)/mllmsubj train --config=configs/tiny.py --workdir=pretrained/subject \
	  --config.data.examples=10000 --config.data.cache=pretrained/cache --config.data.cache_parts=all
	$(BIN)/python -m mllmsubj.assets --subject=pretrained/subject

# Pins everything that the targets above install. torch's own dependencies stay out of the file, since
# they differ between its CPU and CUDA builds; pip takes those that the chosen build names.
lock: install
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra test --no-annotate --no-header \
	  pyproject.toml | grep -vE '^(nvidia-|cuda-|triton)' > constraints.tmp
	mv constraints.tmp constraints.txt

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .ruff_cache .mypy_cache
