#!/usr/bin/env bash
# The gain, in under two minutes: a ranker learned on one part of our own trace, the embedded model serving prompts of
# the other part, free running to the model's own end of text, under four policies in turn.
# usage: demo.sh OUTRANK TRACE [more flags of outrank bench]
set -euo pipefail
outrank=$1
trace=$2
shift 2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "demo: learning the order of answer lengths from the training part of $trace ..." >&2
"$outrank" train --trace "$trace" --out "$work/demo.outrank" >&2
echo "demo: held-out prompts in one burst, to the embedded model, under four policies ..." >&2
"$outrank" bench --policies fcfs,ltr,outrank,oracle-sjf --trace "$trace" --held-out --ranker "$work/demo.outrank" \
    --arrivals burst:48 --lengths free --max-tokens 128 --seats 8 "$@"
