#!/usr/bin/env bash
# Real engines behind the gateway, asked by the openai client. Flags: see upstreams.py.
# usage: upstreams.sh --outrank target/release/outrank [--mode hold|stamp] ...
set -euo pipefail
cd "$(dirname "$0")/../.."
bash bench/gateway/venvs.sh judges
bench/gateway/llama-server.sh .cache/llama-server
exec .venv/judges/bin/python bench/gateway/upstreams.py "$@"
