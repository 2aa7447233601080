#!/usr/bin/env bash
# Overhead of outrank, vllm-router and sglang-router before the same mock server, in one run. Flags: see overhead.py.
# usage: overhead.sh [--outrank target/release/outrank] [--rounds N] ...
set -euo pipefail
cd "$(dirname "$0")/../.."
bench/gateway/venvs.sh vllm-router sglang-router
cargo build --release --locked --quiet -p outrank-gateway-bench
exec python3 bench/gateway/overhead.py "$@"
