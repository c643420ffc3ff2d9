# Every target sets up what it needs, so that on a fresh machine one word is enough. `make help` lists them.
#
# Two environments share .venv: `all` (to run Kolejka) and `dev` (to test it as well). Each has a stamp file that is older
# than pyproject.toml exactly when it must be installed again. Debian packages are installed only where a command is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST ?= $(BIN)/python -m pytest
SOURCES := kolejka tests tools image

FAST_TESTS := tests/unit tests/architecture
# Tests that touch the machine stay together in one of two processes (tests/conftest.py).
SIDE_BY_SIDE := -n 2 --dist loadgroup
SLOW_TESTS := $(wildcard tests/conformance tests/integration tests/compat tests/e2e tests/faults tests/hostile tests/soak)

.DEFAULT_GOAL := help
.PHONY: help demo test test-v2 test-image image deb test-deb test-deb-v2 check bench bench-accuracy soak chaos format docs setup packages clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do \
		printf '  make %-14s %s\n' "$$name" "$$text"; done

demo: $(VENV)/installed-all ## run one task through a server, an observer and a foreman, and stop them again
	@$(BIN)/python tools/demo.py

test: setup lint ## every test there is, real neighbours included (under 10 minutes)
	$(PYTEST) $(SIDE_BY_SIDE) $(FAST_TESTS) $(SLOW_TESTS)

check: $(VENV)/installed-dev lint ## what one runs all day: format, lint, types, imports, fast tests (under a minute)
	$(PYTEST) -q $(FAST_TESTS)

test-v2: setup ## tests of observer, runtimes and hostile programs inside the node image, on control groups v2
	@tools/packages mmdebstrap mksquashfs mke2fs qemu-system-x86_64
	$(BIN)/python -m tests.machine

image: $(VENV)/installed-dev ## the node image: kernel, initrd, squashfs, USB disk, ISO, iPXE (ENGINE=, KERNEL=, GPU=, PACKAGES=)
	@tools/packages mmdebstrap mksquashfs sfdisk mcopy xorriso
	$(BIN)/python -m image $(if $(ENGINE),--engine $(ENGINE)) $(if $(KERNEL),--kernel $(KERNEL)) $(if $(GPU),--gpu $(GPU)) \
		$(if $(PACKAGES),--packages '$(PACKAGES)')

IMAGE_TESTS := mmdebstrap mksquashfs mke2fs qemu-system-x86_64 sfdisk mcopy xorriso OVMF ipxe ipxe.efi dnsmasq cpio ip busybox ssh
test-image: setup ## boot the node image in every way there is and run tasks on it (half an hour; SELECTION= for less)
	@tools/packages $(IMAGE_TESTS)
	KOLEJKA_TEST_REQUIRES='root image netns busybox' $(PYTEST) -v $(or $(SELECTION),tests/image)

deb: $(VENV)/installed-dev ## Debian packages of this tree, for this Debian release: client, server, node (dist/deb)
	@tools/packages dh
	$(BIN)/python -m tools.deb dist/deb

test-deb: setup ## build them, then install, use, upgrade, remove and purge them on a whole Debian (about three minutes)
	@tools/packages dh lintian mmdebstrap systemd-nspawn buildah
	$(PYTEST) -v tests/packages

test-deb-v2: deb ## install them inside the node image, on control groups v2, and run tasks (about ten minutes)
	@tools/packages mmdebstrap mksquashfs mke2fs qemu-system-x86_64
	$(BIN)/python -m tests.machine --debs dist/deb tests/machine/packages_on_v2.py

bench-accuracy: setup ## measure the measurement: figures of results against ground truth (bench-accuracy.json)
	$(BIN)/python -m tests.bench.accuracy

soak: setup ## 10000 tasks of mixed fates, then count what they left behind
	$(BIN)/python -m tests.soak

chaos: setup ## break everything again and again while tasks run, on both engines (about ten minutes)
	KOLEJKA_TEST_CHAOS=3 $(PYTEST) -v tests/faults/test_chaos_matrix.py

bench: packages $(VENV)/installed-bench ## measure: cost of a task, latency, tasks per second, beside others (bench-results.json)
	@tools/packages redis-server
	$(BIN)/python -m tests.bench

format: $(VENV)/installed-dev ## put all code into its form
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: $(VENV)/installed-dev ## write docs/reference from the declarations
	$(BIN)/python tools/reference.py

setup: packages $(VENV)/installed-dev ## .venv and Debian packages for all of this

clean: ## remove what was made here: .venv, caches, results
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f bench-results.json bench-accuracy.json
	find kolejka tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: lint
lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

packages:
	@tools/packages dockerd containerd runc podman busybox gcc docker-registry skopeo ip tc nsenter systemd-analyze nginx

$(VENV)/installed-%: pyproject.toml setup.py tools/virtualenv
	@PYTHON='$(PYTHON)' tools/virtualenv $(VENV) $*
