# Each target does its own set-up: python3 with pip and make are all that is needed.
VENV := .venv
UV := $(VENV)/uv/bin/uv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test thorough lint index bench faults fuzz docs setup clean

setup: $(READY)

# uv comes through pip into the environment's own folder; nothing outside it is touched.
$(READY): pyproject.toml constraints.txt
	python3 -m pip install --quiet --disable-pip-version-check --upgrade --target $(VENV)/uv uv
	$(UV) venv --quiet --allow-existing --python "$$(command -v python3)" $(VENV)
	$(UV) pip install --quiet --compile-bytecode --python $(PYTHON) --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(VENV)/bin/distill3d demo

# What the tests need besides: rerun-sdk is half a gigabyte that nobody else has to wait for.
TEST_READY := $(VENV)/.test-ready

$(TEST_READY): $(READY)
	$(UV) pip install --quiet --compile-bytecode --python $(PYTHON) --constraint constraints.txt --editable '.[dev,rerun]'
	touch $(TEST_READY)

test: $(TEST_READY) lint
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist worksteal -q

# All tests, those that repeat others in more settings included, and many more examples of each property: an hour.
thorough: $(TEST_READY) lint
	DISTILL3D_THOROUGH=1 OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist worksteal -q -m ""

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --level error --pythonpath $(PYTHON)

# What `distill3d recipes` and `train NAME --help` say without asking the recipes, which takes seconds.
index: $(READY)
	$(PYTHON) -m distill3d.recipe_index

# Every command ended at random moments: results, leftovers, messages; about six seconds a kill.
KILLS := 200

faults: $(READY)
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.faults --kills $(KILLS)

# All that measures speed and memory.  What takes hours (seeds, shipped, distillation) or needs real frames is asked for.
ASKED_FOR := $(addprefix benchmarks/,seeds.py shipped.py real_frames.py machine.py processes.py waits.py pretend_device.py)
MEASUREMENTS := $(filter-out $(ASKED_FOR),$(wildcard benchmarks/*.py))

bench: $(READY)
	for file in $(MEASUREMENTS); do $(PYTHON) $$file || exit 1; done
	$(PYTHON) -m benchmarks.speed
	$(PYTHON) -m benchmarks.waits

# Inputs of all kinds for every command, so many seconds; docs/robustness.md.
SECONDS := 3600
SEED := 0
JOBS := 1

fuzz: $(TEST_READY)
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.fuzz --seconds $(SECONDS) --seed $(SEED) --jobs $(JOBS) --keep fuzz-found

# The site, in build/site: a warning fails, and so does a link that leads nowhere.
DOCS_READY := $(VENV)/.docs-ready

$(DOCS_READY): $(READY)
	$(UV) pip install --quiet --compile-bytecode --python $(PYTHON) --constraint constraints.txt --editable '.[dev,docs]'
	touch $(DOCS_READY)

docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

clean:
	rm -rf $(VENV)
