#!/usr/bin/env bash
# Collects the lengths of our own trace again: the embedded model answers every prompt of traces/prompts at
# temperature 0, up to 384 tokens.     usage: collect.sh OUTRANK TRACE
set -euo pipefail
exec "$1" trace collect traces/prompts/*.jsonl --out "$2" --temperature 0 --seed 1 --max-tokens 384 --seats 16 --force
