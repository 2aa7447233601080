#!/bin/bash
# Measures vLLM on one GPU: the main plan, then those with less KV memory. Takes about 16 minutes.
# usage: run.sh BUNDLE RESULTS [PLAN...]
# BUNDLE holds vLLM 0.24.0 (install.sh unpacks it and prints what to export) and model/config.json, a Llama-3-8B shape.
here=$(cd "$(dirname "$0")" && pwd) bundle=$1 results=$2
shift 2
[ $# -eq 0 ] && set -- main small-kv tight-kv
trap 'touch "$results/done"' EXIT
mkdir -p "$results"
eval "$(bash "$bundle/install.sh" "$bundle" | tail -1)"
export PYTHONPATH=$PYTHONPATH:$here PYTHONUNBUFFERED=1
for plan; do
  for _ in $(seq 30); do # until the memory of the engine before is free
    [ "$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits)" -lt 4000 ] && break
    sleep 1
  done
  [ "$plan" = main ] && limit=790 || limit=165
  python3 "$here/reality.py" --model "$bundle/model" --out "$results" --plan "$plan" --seconds $limit
  [ -s "$results/reality-$plan.jsonl" ] || exit 1
done
echo "run.sh: $SECONDS s"
