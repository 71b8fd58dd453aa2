# netagent: every task of a developer, one target each. `make` alone lists them.
# Set-up happens by itself: .venv from uv.lock, and the daemons for lab and tests unpacked into .tools/.

.DEFAULT_GOAL := help
SHELL := bash
PYTHON := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(CURDIR)/.tools/bin:$(PATH):/usr/sbin:/sbin
ARGS ?=

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: tools
tools: ## set up .venv and .tools (ETCD=/path takes another etcd); done by itself when needed
	@scripts/setup-python
	@scripts/setup-tools

.PHONY: lab
lab: tools ## three hosts on real etcd through host-gw, vxlan and udp; leaves vxlan up
	@$(PYTHON) -m netagent lab demo $(ARGS)

.PHONY: lab-down
lab-down: ## take down what make lab left up
	@$(PYTHON) -m netagent lab down $(ARGS)

.PHONY: test
test: tools ## unit, property and namespace tests with real etcd (ARGS="-k name", JOBS=3)
	@scripts/test base $(ARGS)

.PHONY: tools-interop
tools-interop: tools
	@scripts/setup-tools interop

.PHONY: test-all
test-all: test tools-interop ## the tests of make test, then the slow ones and those with BIRD, FRR and GoBGP
	@scripts/test added $(ARGS) || { code=$$?; test $$code -eq 5 && echo "no slow tests match"; exit $$((code == 5 ? 0 : code)); }

.PHONY: test-flannel
test-flannel: tools ## a mixed cluster with a real flanneld: FLANNELD=/path/to/flanneld
	@test -x "$(FLANNELD)" || { echo "say which flanneld: make test-flannel FLANNELD=/path/to/flanneld" >&2; exit 2; }
	@FLANNELD="$(FLANNELD)" scripts/test flannel $(ARGS)

.PHONY: fuzz
fuzz: tools ## fuzz every decoder, guided by coverage (TARGET="bgp-open ...", SECONDS=60 for each, JOBS=1)
	@scripts/setup-python fuzz
	@$(PYTHON) -m tests.fuzz --seconds $(if $(filter command line,$(origin SECONDS)),$(SECONDS),60) --jobs $(or $(JOBS),1) $(TARGET) $(ARGS)

.PHONY: bench
bench: tools ## benchmarks, as tables with ratios (FLANNELD=/path adds its columns)
	@FLANNELD="$(FLANNELD)" $(PYTHON) -m tests.bench $(ARGS)

.PHONY: test-vms
test-vms: deb tools-interop ## three virtual machines with Debian's kernel, as root (NETAGENT_ACCEL=tcg|kvm)
	@scripts/setup-vms
	@JOBS=0 scripts/test vms -v $(ARGS)

.PHONY: box
box: tools ## a Vagrant box of Debian for libvirt, as root, where public ones cannot be downloaded
	@scripts/setup-vms
	@scripts/vm-box

.PHONY: test-vagrant
test-vagrant: deb box ## vagrant up, pings over each backend, status, destroy; as root, on a host made for it
	@JOBS=0 scripts/test vagrant -v -s $(ARGS)

.PHONY: deb
deb: tools ## the Debian package, in dist/, for this release or another (SUITE=trixie, as root); nothing is installed
	@$(if $(SUITE),scripts/setup-hosts && scripts/deb-in $(SUITE),$(PYTHON) packaging/deb/build.py)

.PHONY: bench-bgp
bench-bgp: tools-interop ## the BGP speaker beside BIRD, FRR and GoBGP, against its bars
	@$(PYTHON) -m tests.bench bgp $(ARGS)

.PHONY: bench-bfd
bench-bfd: tools-interop ## BFD with BIRD and FRR: silent peers found, and no others under load (ARGS="--minutes 10")
	@$(PYTHON) -m tests.bench bfd $(ARGS)

.PHONY: lint
lint: tools ## ruff, mypy and the import rules
	@ruff check . && ruff format --check . && mypy && lint-imports --no-logo

.PHONY: docs
docs: tools ## generate the reference pages and check the docs
	@$(PYTHON) docs/generate.py
	@$(PYTHON) -m pytest -q tests/unit/test_docs.py

.PHONY: proto
proto: tools ## generate netagent/store/proto from its .proto files
	@$(PYTHON) -m grpc_tools.protoc -I . --python_out=. $$(git ls-files 'netagent/store/proto/*.proto')

.PHONY: clean
clean: ## remove what was built and cached (.venv and .tools stay; rm -rf them to start afresh)
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.venv/*' -not -path './.tools/*' -prune -exec rm -rf {} +
