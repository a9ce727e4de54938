# Everything here sets up .venv on its own, and is quick the second time.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
CKPT ?= checkpoints/nano
OUT ?= out/eval
RUN := .venv/bin/python

.PHONY: eval test test-slow lint clean

eval: .venv/.runtime  ## rate-distortion table of CKPT on sample photographs, from real files
	$(RUN) eval.py --ckpt $(CKPT) --out $(OUT) --report-images 0

test: lint  ## the whole suite, under 10 minutes on two cores
	$(RUN) -m pytest -q

test-slow: .venv/.dev  ## the long checks
	$(RUN) -m pytest -q -m slow

lint: .venv/.dev
	.venv/bin/ruff check .

.venv/.runtime: requirements.txt
	test -x $(RUN) || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/.dev: requirements-dev.txt .venv/.runtime
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv out
