#!/usr/bin/env bash
# schemathesis 4.32.0 as a judge: everything that /openapi.json of the gateway promises, with and without keys.
# usage: schemathesis.sh OUTRANK [EXAMPLES]
set -euo pipefail
cd "$(dirname "$0")/../.."
bench/gateway/venvs.sh judges
cargo build --release --locked --quiet -p outrank-gateway-bench
exec python3 bench/gateway/judge_schemathesis.py --outrank "$1" --examples "${2:-100}"
