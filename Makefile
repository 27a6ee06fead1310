# SPDX-License-Identifier: Apache-2.0
# `make clean` removes what `make` writes: .venv, build, install, log, demo, a page of docs and caches.

SHELL := bash
.SHELLFLAGS := -eo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup demo test docs audit sbom fuzz clean

PYTHON ?= python3         # 3.11 to 3.13
TORCH ?= torch==2.13.0    # another build: TORCH='torch==... --extra-index-url URL'

step = @printf '\n== %s\n'
env = source .ci/env.sh

help:  ## show this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */make \1\t/'

setup: .venv/.done install/.done  ## install pinned wheels into .venv, build the ROS interfaces into install/

demo: setup  ## run the node on a camera bag with five commands: prints a table, writes images to demo/
	@$(env)
	python -m lisa_ros.ros.demo --out demo

test: setup  ## run lint and all tests
	@$(env)
	ruff check .
	ruff format --check .
	export LISA_ROS_REQUIRE_ROS=1  # tests of what the set-up installed may not be skipped
	cores=$$(nproc)
	export OMP_NUM_THREADS=1       # the test processes share the cores
	# one process more than cores, at most 4: tests of nodes often wait
	python -m pytest -n $$(( cores < 4 ? cores + 1 : 4 )) --dist loadfile --no-loadscope-reorder || \
	python test/rerun_failed.py $$?
	export LISA_ROS_TEST_RAY_SERVE=1  # a cluster, with no other test beside it
	python -m pytest test/test_serving_ray.py || python test/rerun_failed.py $$?

docs: build/docs/.done  ## write the documentation as a site to build/site
	@build/docs/bin/sphinx-build -q -W --keep-going -c docs/site -d build/docs/cache . build/site
	echo 'site: build/site/index.html'

audit: build/audit/.done  ## compare the pinned packages with the known vulnerabilities
	@$(PYTHON) .ci/audit.py build/audit

sbom: build/audit/.done .venv/.done  ## list all packages of .venv in build/sbom.cdx.json (CycloneDX)
	@build/audit/bin/cyclonedx-py environment .venv/bin/python --no-validate --output-file build/sbom.cdx.json
	echo 'sbom: build/sbom.cdx.json'

fuzz: build/fuzz/.done  ## fuzz one reader with atheris: make fuzz TARGET=coco SECONDS=300; without TARGET: list them
	@$(env)
	build/fuzz/bin/python test/fuzz/run_atheris.py $(or $(TARGET),--list) $(SECONDS) --out build/fuzz/out

clean:  ## remove everything that make wrote
	rm -rf .venv build install log demo docs/interfaces.md lisa_ros.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --no-compile: Python compiles the modules that are imported; compiling all of them takes a minute more.
# The wheels' CMake files contain paths of the machine that built them: replace them by this Python and .venv, and
# remove a library that the wheels carry.
.venv/.done: .ci/requirements.txt .ci/constraints.txt setup.py $(wildcard config/requirements/*.txt)
	$(step) 'PyTorch into .venv'
	$(PYTHON) .ci/check_machine.py
	[ -x .venv/bin/pip ] || $(PYTHON) -m venv .venv
	.venv/bin/pip install --no-compile $(TORCH)
	printf '\n== %s\n' 'ROS 2 and the libraries into .venv (about 180 wheels)'
	.venv/bin/pip install --no-compile -r .ci/requirements.txt -c .ci/constraints.txt
	.venv/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	include=$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
	find -L .venv/share -name '*.cmake' -exec sed -Ei \
		-e "s#/opt/python/[^/]+/include/python3\.[0-9]+#$$include#g" \
		-e "s#/opt/python/[^/]+/lib/#$(CURDIR)/.venv/lib/#g" -e 's#;/usr/lib64/libtinyxml2\.so##' {} +
	touch $@

# The tools of docs, audit, sbom and fuzz have virtual environments of their own. `fuzz` sees the packages of .venv.
build/docs/.done: .ci/docs-requirements.txt .ci/docs-constraints.txt
	@rm -rf build/docs
	$(PYTHON) -m venv build/docs
	build/docs/bin/pip install --quiet --no-compile -r .ci/docs-requirements.txt -c .ci/docs-constraints.txt
	touch $@

build/audit/.done: .ci/audit-requirements.txt .ci/audit-constraints.txt
	@rm -rf build/audit
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet --no-compile -r .ci/audit-requirements.txt -c .ci/audit-constraints.txt
	touch $@

build/fuzz/.done: install/.done
	@rm -rf build/fuzz
	.venv/bin/python -m venv build/fuzz
	build/fuzz/bin/pip install --quiet --no-compile atheris==3.0.0
	packages='import sysconfig; print(sysconfig.get_path("purelib"))'
	.venv/bin/python -c "$$packages" > $$(build/fuzz/bin/python -c "$$packages")/project.pth
	touch $@

# Python, launch and config files are linked: edits are live. A new file changes its folder, so it is linked here.
install/.done: .venv/.done package.xml CMakeLists.txt $(shell find lisa_ros launch config -type d ! -name __pycache__) \
		$(shell find msg srv action -type f 2>/dev/null)
	$(step) 'interfaces into install/'
	$(env)
	colcon --log-level error build --symlink-install --event-handlers console_cohesion-
	touch $@
