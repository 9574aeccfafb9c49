# make demo : set up, train the captioner on embedded data, write runs/demo/report.html
# make test : set up, then every test (export check, notebooks, pytest)
# make help : the rest
SHELL := bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= $(shell env -u OMP_NUM_THREADS nproc)
export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= agg

.PHONY: help setup demo understand real photos gpu test test-export test-nbs test-py test-portable nbs docs readme contents bench models export clean
help:        ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 14

ifeq ($(VENV),.venv)
.venv/.ready: settings.ini setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade-strategy only-if-needed -c constraints.txt -e '.[dev]'
	touch $@
setup: .venv/.ready   ## create .venv with the pinned set; make … VENV=other uses another environment as it is
else
setup:
	@test -x $(BIN)/python || { echo 'VENV=$(VENV): no environment there; make one, or leave VENV out for .venv'; exit 2; }
endif

demo: setup  ## train on embedded data and write runs/demo/report.html
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/xm-demo --output-dir runs/demo $(ARGS)
understand: setup  ## train models that answer, choose and find on embedded data and write runs/understand/report.html
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/xm-understand --output-dir runs/understand $(ARGS)
real: setup  ## train on a real data set: make real DATA=../shared/data/ucm_captions
	@test -n "$(DATA)" || { echo 'usage: make real DATA=path/to/ucm_captions'; exit 2; }
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/xm-real --data $(DATA) $(ARGS)

photos: setup  ## train, pack and score the captioner of photographs: make photos DATA=../shared/data/flickr8k
	@test -n "$(DATA)" || { echo 'usage: make photos DATA=path/to/flickr8k'; exit 2; }
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/xm-photos --data $(DATA) --train runs/photos $(ARGS)

test: setup  ## everything CI runs: all parts, then the names of those that failed
	@failed=; for part in test-export test-nbs test-py; do $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi; echo 'all parts passed'
test-export: setup  ## the package, README and tables of contents are what the notebooks say
	$(BIN)/python -m pytest -q tests/hygiene/test_export.py
test-nbs: setup     ## run every notebook
	$(BIN)/nbdev_test --n_workers $(WORKERS) --timing
test-py: setup      ## pytest
	$(BIN)/python -m pytest -q -m 'not slow and not cuda' tests

test-portable: setup  ## notebooks and pytest as other processors, threads and seeds would run them: ARGS='--variant avx2 nbs/14_engine'
	$(BIN)/python tests/portable.py $(ARGS)

gpu: setup  ## on a machine with a GPU: parity and GPU tests there, then the measurements (8 minutes): make gpu VENV=path/to/venv
	XMODALER_DEVICE=cuda $(BIN)/python -m pytest -q -m 'not slow' tests/parity/test_captioners.py tests/parity/test_decoding.py tests/parity/test_understanding.py $(ARGS)
	$(BIN)/python -m pytest -q -m cuda tests $(ARGS)
	mkdir -p runs
	$(BIN)/python benchmarks/gpu.py --out runs/gpu.json --table runs/gpu.md

export: setup  ## write the package from the notebooks
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
nbs: setup   ## re-execute one notebook in place: make nbs NB=nbs/03_config/15_config.ipynb
	$(BIN)/nbdev_export
	cd $(dir $(NB)) && $(abspath $(BIN))/jupyter nbconvert --to notebook --execute --inplace $(notdir $(NB))
	$(BIN)/nbdev_clean --fname $(NB)
readme: setup  ## README.md from nbs/index.ipynb
	$(BIN)/python -m xmodaler_nb.utils.docs readme
contents: setup  ## the tables in the 99_* notebooks, from titles and questions
	$(BIN)/python -m xmodaler_nb.utils.docs contents
docs: setup    ## the site, as static pages in _docs/
	$(BIN)/python -m xmodaler_nb.utils.docs site
models: setup ## train every captioner on embedded data (about 15 minutes) and write nbs/01_tour/20_models.ipynb
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/xm-models --output-dir runs/models --write nbs/01_tour/20_models.ipynb $(ARGS)
bench: setup   ## every comparison in benchmarks/
	for b in benchmarks/*.py; do $(BIN)/python $$b; done
clean:         ## remove what commands made (not .venv)
	rm -rf runs _docs _proc build *.egg-info
