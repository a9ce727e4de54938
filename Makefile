# Everything here sets up its environment on its own, and is quick the second time.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
CKPT ?= checkpoints/nano
OUT ?= out/eval
RUN := .venv/bin/python
LATEST := .venv-latest/bin/python

.PHONY: eval test test-slow test-latest lint clean

eval: .venv/.runtime  ## rate-distortion table of CKPT on sample photographs, from real files
	$(RUN) eval.py --ckpt $(CKPT) --out $(OUT) --report-images 0

test: lint  ## the whole suite, under 10 minutes on two cores
	$(RUN) -m pytest -q

test-slow: .venv/.dev  ## the long checks
	$(RUN) -m pytest -q -m slow

test-latest:  ## the suite on the newest releases of everything, without TensorFlow and the range coder
	test -x $(LATEST) || $(PYTHON) -m venv .venv-latest
	$(LATEST) -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -r requirements-latest.txt
	$(LATEST) -m pytest -rs --without-tensorflow

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
	rm -rf .venv .venv-latest out
