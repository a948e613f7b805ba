# Two commands do everything: `make demo` and `make test`. Both create the environment when it is missing.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
JOBS   ?= $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())")
DEMO_SEEDS ?= 4
AGAIN  := --scale full --tuning ledger --first-seed 100 --jobs $(JOBS)
STUDIES := ssd adaptive-gain-control ei-adaptive-reservoir
# these need nothing but what is installed; their siblings (-audio, -text, -mnist, -adding) want PLEXUS_DATA
SPIKING := astro-snn dcls-delays deep-ei-snn dynamic-confidence elm-neuron hd-snn meta-neuron-lzc
TRAINED := alignment-language-neurons austeer eigenshift g2gnet post-training-views relation-neurons selective-steering \
	superposition-entropy taugate

.PHONY: help demo test lint types layers unit smoke docs bench peers ledger clean

help:
	@echo "make demo    look at the ledger, re-measure its studies on this machine, write report.html"
	@echo "make test    every check: style, types, layers, tests, smoke runs, documentation"
	@echo "make bench   benchmarks against the installed peers (make peers installs them, in .venv-peers)"
	@echo "make ledger  the confirming runs: unseen seeds, ten where a study does not say otherwise, written to ledger/"

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@echo "— the ledger as shipped: what each study found on seeds that follow from its frozen bars —"
	@$(BIN)/plexus list
	@$(BIN)/plexus report --out report.html
	@echo "— measuring again on this machine, with the ledger's settings, on a few seeds that it has not used (Ctrl-C stops, make demo continues) —"
	@status=0; \
	$(BIN)/plexus run adaptive-gain-control ei-adaptive-reservoir $(AGAIN) --seeds $(DEMO_SEEDS) || status=$$?; \
	$(BIN)/plexus run ssd $(AGAIN) --seeds 2 || status=$$?; \
	$(BIN)/plexus report --here --out report.html && exit $$status
	@echo "open report.html: the ledger, and beside it what was measured here"

test: $(STAMP) lint types layers unit smoke docs

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

unit: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --doctest-modules tests plexus

# only the studies whose code (or the library code they load) changed since their last smoke run are run again
smoke: $(STAMP)
	$(BIN)/plexus run $(STUDIES) $(SPIKING) $(TRAINED) --scale smoke --seeds 1 --jobs $(JOBS)

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(STAMP)
	$(BIN)/plexus bench

# the peers that benchmarks and parity tests compare with live in environments of their own
peers: .venv-peers/.installed .venv-language-peers/.installed
.venv-peers/.installed: benchmarks/peers.txt
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -r benchmarks/peers.txt
	@touch $@
.venv-language-peers/.installed: benchmarks/language_peers.txt
	@test -x .venv-language-peers/bin/python || $(PYTHON) -m venv .venv-language-peers
	.venv-language-peers/bin/python -m pip install --quiet -r benchmarks/language_peers.txt
	@touch $@

ledger: $(STAMP)
	$(BIN)/plexus run $(STUDIES) $(SPIKING) $(TRAINED) --confirm --jobs $(JOBS)
	$(BIN)/plexus calibrate

clean:
	rm -rf build dist site report.html .plexus *.egg-info
