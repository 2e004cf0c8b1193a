# make demo    installs what is needed and shows a four-node cluster on this machine (root or sudo)
# make test    installs what is needed and runs every check (root or sudo; without root its real-container part is refused)
# make quick   the checks that need no root
# make bench   the measurements of bench/
# make soak    what takes longer: many simulated clusters, long chaos
# make guest   the node's tests in a virtual machine with a unified cgroup tree (Debian 12 with qemu-system-x86; 20 minutes or more)
SHELL := /bin/bash
PY := .venv/bin/python
# two test files at a time: most of their time is waiting
PAIR := -n 2 --dist loadfile
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)

.PHONY: setup demo test quick lint types contracts plan sim contract integration peers e2e bench soak guest clean

setup:
	@tools/setup

demo: setup
	@$(ROOT) $(PY) tools/demo

quick: lint types contracts plan sim contract

test: quick integration peers e2e

lint: setup
	@echo "== lint"
	@.venv/bin/ruff format -q --check . && .venv/bin/ruff check -q .

types: setup
	@echo "== types"
	@.venv/bin/mypy

contracts: setup
	@echo "== import contracts"
	@.venv/bin/lint-imports | tail -n 20

plan: setup
	@echo "== decisions, store, link, node"
	@$(PY) -m pytest -q tests/plan tests/store tests/link tests/node tests/api -m "not root and not soak" $(PAIR)

sim: setup
	@echo "== simulated clusters"
	@$(PY) -m pytest -q tests/sim -m "not soak"

contract: setup
	@echo "== Docker's dialect"
	@$(PY) -m pytest -q tests/contract tests/peers -m "not root and not soak" $(PAIR)

integration: setup
	@echo "== real containers, namespaces, registry (root)"
	@$(ROOT) $(PY) -m pytest -q tests/integration tests/link tests/contract -m "root and not soak" $(PAIR)

peers: setup
	@echo "== other projects' tests, and fuzzing (root)"
	@tools/peers
	@$(ROOT) $(PY) -m pytest -q tests/peers -m "root and not soak"

e2e: setup
	@echo "== end to end (root)"
	@$(ROOT) $(PY) -m pytest -q tests/e2e -m "not soak" $(PAIR)

bench: setup
	@$(ROOT) $(PY) bench/all.py

soak: setup
	@$(PY) -m skep.testing.sim --seeds 10000
	@$(ROOT) $(PY) -m pytest -q tests -m soak

guest: setup
	@$(ROOT) tools/guest
