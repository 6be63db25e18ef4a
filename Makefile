# The words that people and CI use. Each installs what is missing first, and each works from any folder:
#   make demo                    here
#   make -C /path/to/evergreen demo, make -f /path/to/evergreen/Makefile demo    from elsewhere

ROOT := $(shell cd "$$(dirname "$(strip $(MAKEFILE_LIST))")" && pwd)

ifneq ($(CURDIR),$(ROOT))

install demo test check check-images docs bench bench-recommend bench-automl bench-serve bench-ledger bench-scale soak bench-monitor bench-statistics plots lock clean:
	@$(MAKE) --no-print-directory -C "$(ROOT)" $@

else

PYTHON ?= python3
BIN := .venv/bin

# Without compiled modules every import takes three times as long.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(ROOT)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export NO_MKDOCS_2_WARNING := 1   # a notice about another program

LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --group dev --generate-hashes -q \
	--custom-compile-command "make lock"
LOCK_SERVING := uv pip compile --group serving --constraint requirements.lock --universal --python-version 3.11 --generate-hashes -q \
	--no-annotate --custom-compile-command "make lock"
COMPILED := prefect mlflow great_expectations sklearn scipy numpy pandas polars lightgbm optuna sqlalchemy pydantic fastapi dvc

install: .venv/ready  ## the environment, pinned by requirements.lock with hashes

# Each line can be run again on what an interrupted run left.
.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Evergreen needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try make PYTHON=python3.11 $(MAKECMDGOALS)."; exit 1; }
	@echo "installing into .venv (about a minute)"
	@$(PYTHON) -m venv .venv
	@awk '/^uv==/ {on = 1} on {print} on && !/\\$$/ {exit}' requirements.lock > .venv/uv.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r .venv/uv.lock
	@VIRTUAL_ENV=.venv $(BIN)/uv pip sync -q --require-hashes requirements.lock
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install -q --no-deps --no-build-isolation -e .
	@cd .venv/lib/python3*/site-packages && "$(ROOT)/$(BIN)/python" -m compileall -q -j0 $(COMPILED)
	@touch $@

demo: install  ## the main job: four problems on a year of a real store, from raw tables to deployed champions and a page
	@evergreen demo

test: install  ## every test
	@python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: install  ## style, types, direction of imports, documentation, lock
	ruff check .
	ruff format --check .
	pyright
	lint-imports
	mkdocs build --strict --quiet
	@cp requirements.lock .venv/again.lock && $(LOCK) -o .venv/again.lock && diff -q requirements.lock .venv/again.lock >/dev/null \
	  || { echo "requirements.lock does not follow from pyproject.toml; run make lock"; exit 1; }
	@cp requirements-serving.lock .venv/again.lock && $(LOCK_SERVING) -o .venv/again.lock \
	  && diff -q requirements-serving.lock .venv/again.lock >/dev/null \
	  || { echo "requirements-serving.lock does not follow from pyproject.toml; run make lock"; exit 1; }
	@echo "both locks follow from pyproject.toml"

docs: install  ## the documentation site, at http://127.0.0.1:8000, built again on each change
	@mkdocs serve

bench: install  ## what things cost, as ratios of two things run in turn
	@python -m bench

bench-recommend: install  ## how the recommender grows, on generated purchases
	@python -m bench recommend

bench-monitor: install  ## false alarms, power and cost of monitoring beside Evidently's defaults, in about half an hour
	@python -m bench.monitor

bench-statistics: install  ## the true rate of each statistical claim, by simulation; takes an hour or more
	@python -m bench.statistics

bench-automl: install  ## Evergreen beside FLAML and AutoGluon, on public tables; makes their environments, takes about half an hour
	@python -m bench.automl

bench-serve: install  ## the server beside MLflow's, BentoML and MLServer on the same model, after make demo, or with PROJECT=FOLDER; about ten minutes, needs wrk
	@python -m bench.serve $(if $(PROJECT),--project "$(PROJECT)")

bench-ledger: install  ## a ledger of 5 million predictions: a day's monitoring, cohorts, retention, waits of other writers; a quarter of an hour
	@python -m bench.ledger

bench-scale: install  ## how each step of a training grows, with 1, 3 and 10 times the store; a quarter of an hour
	@python -m bench.scale

soak: install  ## twenty minutes of mixed load and faults on the server; as root it fills a disk too, with PostgreSQL it crashes the database
	@python -m bench.soak

plots: install  ## .dvc/plots, the templates of dvc plots, from the specs of the page's charts
	@python -m evergreen.monitoring.report.dvc_templates

lock: install  ## requirements.lock and requirements-serving.lock from pyproject.toml
	$(LOCK) -o requirements.lock
	$(LOCK_SERVING) -o requirements-serving.lock

check-images: install  ## builds the images and a bundle's, and starts each as its own user; needs buildah and debootstrap; ten minutes
	@CHECK_IMAGES=1 python -m pytest tests/deploy/test_images.py -n 0 -v

clean:  ## all that runs have made; the environment and git's files stay
	rm -rf data models reports var dvc_plots .dvc/cache .dvc/tmp dvc.lock

endif

.PHONY: install demo test check check-images docs bench bench-recommend bench-automl bench-serve bench-ledger bench-scale soak bench-monitor bench-statistics plots lock clean
