# The only interface for people and for CI. `make` alone says what there is.

export VP_CACHE ?= $(HOME)/.cache/vp
export VP_COMPONENTS := $(VP_CACHE)/components
export CARGO_TARGET_DIR := $(VP_CACHE)/target

PROGRAMS := vpctl vp-agent vp-coordinator vp-localcloud vp-ingest vp-publish
# Alone, `make setup` installs everything; each target what it needs.
SETUP_FOR ?= $(if $(filter build programs,$(MAKECMDGOALS)),demo,lint test)
TIERS ?= unit sim process region
SEEDS ?= 20000
SECONDS ?= 600

.DEFAULT_GOAL := help
.PHONY: help setup build programs demo test sim mutants lint fuzz attacks bench bench-core chaos clean clean-cache pins

help: ## say what there is
	@echo "vp: a self-healing cluster that processes videos, here on this one machine."
	@echo
	@echo "  make demo    the whole path once: a region comes up, a video goes through, an instance is killed, another takes over"
	@echo "  make test    every test (TIERS='unit' for the quick ones)"
	@echo "  make sim     whole clusters decided by seeds, every step checked (SEEDS=20000 SECONDS=600)"
	@echo "  make mutants plants each known bug and says which check notices it"
	@echo "  make fuzz    ten million inputs for every parser of something from outside"
	@echo "  make attacks attacks one after another beside quiet, by the mass three turns each; fails when honest agents notice (for a quiet machine)"
	@echo "  make lint    formats, clippy, ruff, and what files and dependencies may contain"
	@echo
	@echo "  make setup   fetch and compile what all of them need (each does its own by itself); SETUP_FOR=demo|test|lint|bench-core|chaos"
	@echo "  make build   leave the programs in bin/: $(PROGRAMS)"
	@echo "  make bench   measure; the table goes to docs/benchmarks.md"
	@echo "  make bench-core   the coordinators beside etcd and ZooKeeper, on this disk; the table goes to docs/benchmarks-core.md"
	@echo "  make chaos   hurt real coordinators and agents for an hour at most and judge what they did"
	@echo "  make clean   remove bin/ and build output; make clean-cache removes everything that was fetched, too"
	@echo
	@echo "  Everything fetched or compiled lives in $(VP_CACHE) (VP_CACHE=DIR names another place), regions in ~/.local/state/vp."
	@echo "  After make build: bin/vpctl dev up && bin/vpctl submit CLIP --wait && bin/vpctl status"

# Cargo takes what another clone compiled for its own when that is newer than its own sources: of that only the dependencies are kept.
setup: ## everything SETUP_FOR needs, pinned
	@if [ "$$(cat '$(CARGO_TARGET_DIR)/clone' 2>/dev/null)" != '$(CURDIR)' ]; then \
		rm -rf '$(CARGO_TARGET_DIR)'/*/.fingerprint/vp*; \
		mkdir -p '$(CARGO_TARGET_DIR)' && echo '$(CURDIR)' > '$(CARGO_TARGET_DIR)/clone' || exit 1; \
	fi
	@for purpose in $(SETUP_FOR); do ami/setup $$purpose || exit $$?; done

build: setup programs ## the programs, in bin/

# By rename, and only when they changed: a running region keeps the file it started from.
programs:
	@cargo build --workspace --locked
	@mkdir -p bin
	@for program in $(PROGRAMS); do \
		cmp -s "$(CARGO_TARGET_DIR)/debug/$$program" "bin/$$program" && continue; \
		cp "$(CARGO_TARGET_DIR)/debug/$$program" "bin/.$$program.new" && mv "bin/.$$program.new" "bin/$$program" || exit 1; \
	done

demo: SETUP_FOR := demo
demo: build ## a video through the cluster, and again while an instance dies
	@tests/demo

test: SETUP_FOR := test
test: build ## every tier
	@tests/run $(TIERS)

sim: SETUP_FOR := test
sim: setup ## many seeds; a failing one says how to replay it
	@tests/sim/run --seeds $(SEEDS) --seconds $(SECONDS)

mutants: SETUP_FOR := test
mutants: setup ## fails when a planted bug is noticed by nothing
	@tests/sim/mutants

lint: SETUP_FOR := lint
lint: setup ## no complaint is let through
	@tests/lint/run

fuzz: SETUP_FOR := test
fuzz: setup ## ten million inputs for every parser, optimised and with all checks on (VP_FUZZ_INPUTS, VP_FUZZ_ONLY, VP_FUZZ_SEED)
	@VP_FUZZ_INPUTS=$${VP_FUZZ_INPUTS:-10000000} cargo test --workspace --locked --quiet --profile fuzz --test fuzz -- --nocapture

attacks: SETUP_FOR := test
attacks: build ## honest agents' p99 beside attacks at most twice the quiet one; by the mass in the median of three turns each; coordinators optimised as a release
	@cargo build --locked --quiet --profile measured -p vp-coordinator -p vp-core-tests
	@VP_ATTACK_P99=1 VP_BIN="$(CARGO_TARGET_DIR)/measured" cargo test --workspace --locked --quiet --test attacks -- --nocapture --test-threads 1

bench: SETUP_FOR := test
bench: build ## measures, beside one plain ffmpeg; the agent as it is released
	@cargo build --locked --quiet --release -p vp-agent
	@tests/bench

bench-core: SETUP_FOR := bench-core
bench-core: setup ## the coordinators beside etcd and ZooKeeper; BENCH_CORE='--only a1' for a piece
	@tests/core/bench $(BENCH_CORE)

chaos: SETUP_FOR := chaos
chaos: setup ## faults on real coordinators and agents, histories judged; CHAOS='--seconds 60' for other words
	@tests/core/chaos $(CHAOS)

clean: ## build output
	rm -rf bin "$(VP_CACHE)/target-lint"
	cargo clean --quiet

clean-cache: clean ## and everything fetched
	rm -rf "$(VP_CACHE)"

# After a change of a requirements.in or pom.xml: writes the hashes that set-up checks.
pins:
	@ami/pins
