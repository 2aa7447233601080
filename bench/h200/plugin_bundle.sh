#!/bin/bash
# Makes the folder that run_plugin.sh unpacks on the GPU machine: vLLM, the plug-in's wheel, the model's shape, requests and rankers.
# usage: plugin_bundle.sh OUTRANK DATA VLLM OUT      (OUTRANK: the binary; DATA holds length/*.jsonl.gz; VLLM holds make-bundle.sh and
#                                                     llama3-8b-config.json; vLLM in OUT is kept, all else made anew).
# Needs maturin.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) outrank=$1 data=$2 vllm=$3
mkdir -p "$4/model"
out=$(cd "$4" && pwd)
cp "$vllm/llama3-8b-config.json" "$out/model/config.json"
bash "$here/requests.sh" "$outrank" "$data" "$out"
if [ ! -e "$out/bundle/vllm-bundle.tar.xz" ]; then
  bash "$vllm/make-bundle.sh" "$out/bundle"
  # Kernels repeat far apart: a window of 512 MiB saves 4 MB of the 64 MiB that travel.
  xz -dc "$out/bundle/vllm-bundle.tar.xz" | xz -T1 --lzma2=preset=9e,dict=512MiB >"$out/bundle/small"
  mv "$out/bundle/small" "$out/bundle/vllm-bundle.tar.xz"
fi
rm -f "$out"/*.whl
# For another machine: no instruction that only this one has.
(cd "$here/../../crates/vllm" && RUSTFLAGS="-C target-cpu=x86-64-v3" maturin build -q --release --locked --compatibility linux --out "$out")
du -shc "$out"/* | tail -12
