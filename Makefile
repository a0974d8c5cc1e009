# Needs Python 3.11 or newer, pip and make; everything else is installed into .venv by the first target that needs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SMALL := $(VENV)/.small
STAMP := $(VENV)/.installed
# Each module is compiled, and its asserts rewritten, once and not in every process: images of containers often forbid it.
export PYTHONDONTWRITEBYTECODE :=
WHEEL := $(VENV)/wheel
REPORT := report/demo.html

.PHONY: demo gallery release test test-all test-exhaustive test-times lint types style wheel docs docs-version bench prices check-gpu compare-libraries study-verdicts compare-intervals study-phase-change study-architectures study-pretrained fuzz fixtures runs zoo paper field clean

demo: $(SMALL)  ## gate the shipped models and trainings, controls without induction heads among them, and write a report
	@mkdir -p $(dir $(REPORT))
	@$(BIN)/python -m pytest --no-header -p no:cacheprovider fixtures/demo.gates.toml --induction-report=$(REPORT)
	@$(BIN)/python -m pytest_induction report fixtures/pretrained/smollm2.session.json -o $(dir $(REPORT))smollm2.html
	@echo; echo "The report: $(REPORT)"; echo "That of a pretrained model, from its records: $(dir $(REPORT))smollm2.html"

test: $(STAMP)  ## lint, types, import directions, and the quick tests against the built wheel; `.venv/bin/python -m pytest` has those of the tree
	$(MAKE) --no-print-directory --jobs=2 types style wheel
	$(WHEEL)/bin/python -m pytest -q -n auto --maxprocesses 4

test-all: test  ## the same, and then the slow tests too: what every change must pass
	$(WHEEL)/bin/python -m pytest -q -n auto --maxprocesses 4 -m slow

test-exhaustive: $(STAMP)  ## tests that take minutes: an interrupt at every line of every measurement, all that xdist may do, and cases that repeat another; half an hour
	$(BIN)/python -m pytest -q -m exhaustive

test-times: $(STAMP)  ## time every test; list the slow ones in tests/slow.txt, and cases that repeat another in tests/repeats.txt
	rm tests/repeats.txt
	$(BIN)/python -m pytest -q -n 2 -m "not exhaustive" --junitxml=report/times.xml || true
	$(BIN)/python benchmarks/slow_tests.py report/times.xml > tests/slow.txt
	$(BIN)/python benchmarks/slow_tests.py report/times.xml --repeats > tests/repeats.txt

lint: types style

types: $(STAMP)  ## a minute of one core where mypy has no cache: `make test` builds the wheel meanwhile
	$(BIN)/mypy

style: $(STAMP)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports --no-cache > $(VENV)/imports.txt || { cat $(VENV)/imports.txt; exit 1; }
	$(BIN)/python benchmarks/paper_table.py --check
	$(BIN)/python benchmarks/field_table.py --check
	$(BIN)/python benchmarks/prices.py --check
	$(BIN)/python docs/theme/map.py --check
	$(BIN)/python docs/theme/claims.py --check

wheel: $(STAMP)  ## build the wheel, and install it into an environment of its own beside what it needs
	rm -rf dist $(WHEEL)
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . > $(VENV)/build.txt || { cat $(VENV)/build.txt; exit 1; }
	$(BIN)/python -m venv $(WHEEL)
	echo "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" > \
		"$$($(WHEEL)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	$(WHEEL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.whl
	cd tests && ../$(WHEEL)/bin/python -c "import pytest_induction as p; assert '/wheel/' in p.__file__, p.__file__"

release: $(STAMP)  ## build sdist and wheel, check them, install each in an empty environment and run the tutorial there. RELEASE="--build-only": no more than that
	$(BIN)/python .ci/release.py $(RELEASE)

docs: $(STAMP)  ## build the documentation site into site/; open site/index.html, or serve it with `python -m http.server -d site`
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-version: $(STAMP)  ## build the site of this version into the local branch docs-versions, beside other versions. VERSION_OF="--alias dev": not as the latest
	$(BIN)/python docs/theme/versions.py $(VERSION_OF)

gallery: $(STAMP)  ## draw the pictures of docs/gallery.md again; needs a Chromium
	$(BIN)/python benchmarks/gallery.py

BENCH_JSON := .benchmarks/bench.json

bench: $(STAMP)  ## speed and memory, into docs/performance.md; half an hour. BENCH="101 or toy": only those rows
	@mkdir -p $(dir $(BENCH_JSON)) && rm -f $(BENCH_JSON)
	@$(BIN)/python -m pytest benchmarks -v -p no:cacheprovider --benchmark-quiet --benchmark-json=$(BENCH_JSON) -k "$(BENCH)"; \
		status=$$?; $(BIN)/python benchmarks/table.py $(BENCH_JSON) --write docs/performance.md && exit $$status

prices: $(STAMP)  ## what calls take on two real models and a random one of a billion weights, into docs/performance.md; an hour and a half on one core. PRICES="smollm2 --only find": a part
	$(BIN)/python benchmarks/prices.py $(PRICES)

check-gpu: $(STAMP)  ## backends, kernels, planted heads, time and memory on a CUDA device; under ten minutes. CHECK="--device cpu": try it out
	$(BIN)/python benchmarks/check_gpu.py $(CHECK)

COMPARED := $(VENV)/compared

compare-libraries: $(STAMP)  ## the same work by TransformerLens, nnsight, a notebook and here, into docs/why.md; about ten minutes. COMPARE="--only known": a part
	$(BIN)/python -m venv $(COMPARED)
	echo "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" > \
		"$$($(COMPARED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	$(COMPARED)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt nnsight
	PYTHONPATH=src $(COMPARED)/bin/python benchmarks/compare_libraries.py $(COMPARE)

study-verdicts: $(STAMP)  ## false positives and negatives of the verdicts; about an hour on one core. VERDICTS="--rows retrieval": a part
	$(BIN)/python benchmarks/study_verdicts.py $(VERDICTS)

compare-intervals: $(STAMP)  ## intervals of skewed scores: how often they are wrong, and how many rows they take; a few minutes
	$(BIN)/python benchmarks/compare_intervals.py

study-phase-change: $(STAMP)  ## phase changes found and missed, over hundreds of small trainings; about an hour the first time
	$(BIN)/python benchmarks/study_phase_change.py

study-architectures: $(STAMP)  ## every causal architecture of transformers against its own eager patterns; about two minutes
	$(BIN)/python benchmarks/study_architectures.py

study-pretrained: $(STAMP)  ## two real models, fetched once (350 MB), into docs/pretrained.md; an hour on two cores. STUDY="--quick": a look only
	$(BIN)/python benchmarks/study_pretrained.py $(STUDY)

fuzz: $(STAMP)  ## 20,000 files that nobody wrote so, over every reader; about ten minutes. FUZZ="--inputs 2000 --seed 7": fewer, others
	$(BIN)/python -m tests.fuzz $(FUZZ)

fixtures: $(STAMP)  ## train the shipped models that are missing
	$(BIN)/python fixtures/make.py

runs: $(STAMP)  ## record the shipped training runs again
	$(BIN)/python fixtures/make.py runs

zoo: $(STAMP)  ## train and measure the models of the paper's small zoo that are missing; twenty minutes for all
	$(BIN)/python fixtures/make.py zoo

paper: $(STAMP)  ## the paper's table of models, drawn from what was measured of the zoo
	$(BIN)/python benchmarks/paper_table.py

field: $(STAMP)  ## the claims since the paper, measured on the shipped models and the zoo, into docs/field.md; FIELD="--draw": from what is kept
	$(BIN)/python benchmarks/field_table.py $(FIELD)

clean:
	rm -rf $(VENV) dist site report

# What the demo needs and nothing else. torch first and alone: a range would take the newest build, with gigabytes of
# accelerator libraries. Bytecode is left to the first import: of most modules there is none.
$(SMALL): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-compile --constraint constraints.txt torch numpy
	$(INSTALL) --no-compile --constraint constraints.txt --editable '.[report,transformers]'
	touch $@

$(STAMP): $(SMALL)  ## what developers need besides
	$(INSTALL) --upgrade "pip>=25.1"
	$(INSTALL) --constraint constraints.txt --group dev --editable .
	touch $@
