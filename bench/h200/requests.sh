#!/bin/bash
# Makes what run_plugin.sh wants beside vLLM and the wheel: the held-out requests, a ranker that learned from the other prompts of
# the same traces, and one that never saw such prompts.
# usage: requests.sh OUTRANK DATA OUT      (DATA holds length/*.jsonl.gz)
set -euo pipefail
outrank=$1 length=$2/length out=$3
mkdir -p "$out"
traces=() others=()
for name in instructionwild-llama32-3b mifeval-llama31-8b mmlupro-llama31-8b; do
  "$outrank" trace split --train "$out/train.tmp" --held-out "$out/$name.held.tmp" "$length/$name.jsonl.gz"
done
cat "$out"/*.held.tmp | gzip -9n >"$out/requests.jsonl.gz"
for name in mmlupro-llama31-8b mifeval-llama31-8b instructionwild-llama32-3b; do traces+=(--trace "$length/$name.jsonl.gz"); done
"$outrank" train "${traces[@]}" --out "$out/trained.outrank"
for name in alpaca-libre-gpt35 arenahard-gpt-3.5-turbo-0125 arenahard-gpt-4-0314 arenahard-gpt-4-0613 chatdoctor-gpt35 gpteacher-gpt4 \
  gpteacher-roleplay-gpt4 ifbench; do others+=(--trace "$length/$name.jsonl.gz"); done
"$outrank" train "${others[@]}" --prior none --all --out "$out/cold.outrank"
rm -f "$out"/*.tmp
