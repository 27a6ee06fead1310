# SPDX-License-Identifier: Apache-2.0
# Everything that `make` makes is in .venv, build, install, log and demo; `make clean` removes them.

SHELL := bash
.SHELLFLAGS := -eo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup demo test clean

PYTHON ?= python3         # 3.11 to 3.13
TORCH ?= torch==2.13.0    # or another build of it, with the options of pip that find it

step = @printf '\n== %s\n'
env = source .ci/env.sh

help:  ## this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */make \1\t/'

setup: .venv/.done install/.done  ## .venv with pinned wheels, and the ROS interfaces built into install/

demo: setup  ## the node, a camera bag and five commands: a table here, pictures in demo/
	@$(env)
	python -m lisa_ros.ros.demo --out demo

test: setup  ## lint and all tests
	@$(env)
	ruff check .
	ruff format --check .
	LISA_ROS_REQUIRE_ROS=1 python -m pytest  # what the set-up has made may not be skipped

clean:  ## remove everything that was made
	rm -rf .venv build install log demo lisa_ros.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The wheels' CMake files name the machine that built them: point them at this Python and this .venv.
.venv/.done: .ci/requirements.txt .ci/constraints.txt setup.py
	$(step) 'PyTorch into .venv'
	$(PYTHON) .ci/check_machine.py
	[ -x .venv/bin/pip ] || $(PYTHON) -m venv .venv
	.venv/bin/pip install $(TORCH)
	printf '\n== %s\n' 'ROS 2 and the libraries into .venv (about 180 wheels)'
	.venv/bin/pip install -r .ci/requirements.txt -c .ci/constraints.txt
	.venv/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	include=$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
	find -L .venv/share -name '*.cmake' -exec sed -Ei \
		-e "s#/opt/python/[^/]+/include/python3\.[0-9]+#$$include#g" \
		-e "s#/opt/python/[^/]+/lib/#$(CURDIR)/.venv/lib/#g" {} +
	touch $@

# Edited Python, launch and config files are live, by links; a new one changes its folder and is linked here.
install/.done: .venv/.done package.xml CMakeLists.txt $(shell find lisa_ros launch config -type d ! -name __pycache__) \
		$(shell find msg srv action -type f 2>/dev/null)
	$(step) 'interfaces into install/'
	$(env)
	colcon --log-level error build --symlink-install --event-handlers console_cohesion-
	touch $@
