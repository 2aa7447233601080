#!/usr/bin/env bash
# llama.cpp's server as it is, against the same server behind outrank. Flags: see relief.py.
# usage: relief.sh --outrank target/release/outrank [--rounds N] ...
set -euo pipefail
cd "$(dirname "$0")/../.."
bash scripts/fetch-model.sh .cache/models
bench/gateway/llama-server.sh .cache/llama-server
exec python3 bench/gateway/relief.py "$@"
