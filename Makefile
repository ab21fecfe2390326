# Every door of the project. Each target does its own set-up (packaging/bootstrap.sh) on a fresh Debian 12 machine as root.
PY := .venv/bin/python

.PHONY: help setup demo lab test bench fuzz kernels lint clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 24

setup:  ## Debian packages, the virtual environment .venv, the build
	@packaging/bootstrap.sh build

demo:  ## the whole system in network namespaces: drain, fill, kill under load, and count what broke
	@packaging/bootstrap.sh lab
	@$(PY) -m lab demo

lab:  ## the same hosts, left standing for you to explore (Ctrl-C removes them)
	@packaging/bootstrap.sh lab
	@$(PY) -m lab up

test:  ## every test (as root nothing is skipped; about 5 minutes on 2 cores)
	@packaging/bootstrap.sh dev
	@if [ "$$(id -u)" = 0 ]; then export GLB_REQUIRE=$${GLB_REQUIRE-netns,bpf}; fi; \
	$(PY) -m pytest -q -n auto tests/repo tests/unit tests/parity tests/vectors && \
	$(PY) -m pytest -q -n $$(($$(nproc) + 1)) --dist loadfile --no-loadscope-reorder tests/netns

bench:  ## speed, as JSON lines with ratios to a baseline of the same run
	@packaging/bootstrap.sh lab
	@$(PY) -m bench

fuzz:  ## random and mutated packets until Ctrl-C (bounded in `make test`)
	@packaging/bootstrap.sh dev
	@PYTHONPATH=tests/vectors:tests/parity:tests/unit $(PY) -m fuzz

kernels:  ## the eBPF programs before the verifiers of Linux 6.1 and 6.12 (qemu), and of the running one
	@packaging/bootstrap.sh kernels
	@$(PY) tests/kernels/verify.py

lint:  ## ruff and mypy
	@packaging/bootstrap.sh dev
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

clean:  ## remove build products (not .venv)
	rm -rf build *.egg-info glb/bpf_objects glb/*.so glb/*.c proxy_agent/*.so proxy_agent/*.c
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -f .venv/.built
