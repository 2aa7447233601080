#!/bin/bash
# Measures vLLM on one GPU: the main plan, then the one with little KV memory. Takes about 15 minutes.
# usage: run.sh BUNDLE RESULTS
# BUNDLE holds vLLM 0.24.0 (install.sh unpacks it and prints what to export) and model/config.json, a Llama-3-8B shape.
here=$(cd "$(dirname "$0")" && pwd) bundle=$1 results=$2
trap 'touch "$results/done"' EXIT
mkdir -p "$results"
eval "$(bash "$bundle/install.sh" "$bundle" | tail -1)"
export PYTHONPATH=$PYTHONPATH:$here PYTHONUNBUFFERED=1
python3 "$here/reality.py" --model "$bundle/model" --out "$results" --plan main --seconds 790
[ -s "$results/reality-main.jsonl" ] || exit 1
for _ in $(seq 30); do # until the first engine's memory is free
  [ "$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits)" -lt 4000 ] && break
  sleep 1
done
[ $SECONDS -lt 880 ] && python3 "$here/reality.py" --model "$bundle/model" --out "$results" --plan small-kv --seconds 150
echo "run.sh: $SECONDS s"
