#!/usr/bin/env bash
# guidellm 0.3.1 as a judge: loads the gateway before the mock server, at several concurrencies and at a Poisson rate.
# usage: guidellm.sh OUTRANK [RESULTS]      leaves RESULTS/guidellm.md
set -euo pipefail
cd "$(dirname "$0")/../.."
outrank=$1 results=${2:-results/gateway}
bench/gateway/venvs.sh guidellm
cargo build --release --locked --quiet -p outrank-gateway-bench
venv=.venv/guidellm
[ -s .cache/tokenizer/tokenizer.json ] || "$venv/bin/python" bench/gateway/tokenizer.py .cache/tokenizer 2>/dev/null
exec python3 bench/gateway/judge_guidellm.py --outrank "$outrank" --out "$results" --guidellm "$venv/bin/guidellm" --tokenizer .cache/tokenizer
