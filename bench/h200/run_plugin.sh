#!/bin/bash
# Measures the plug-in on one or two GPUs of one machine; with two, a driver on each goes through the policies in opposite order. Then
# comes vLLM as it is, without the plug-in, and, if TP2 is set, one engine on both GPUs (tensor parallel 2).
# usage: run_plugin.sh start FOLDER        unpacks FOLDER (made by plugin_bundle.sh) and starts the drivers, which outlive the call
#        run_plugin.sh wait OUT SECONDS    waits for them at most so long, and leaves what there is in OUT/results.tar.gz
#        run_plugin.sh all                 what `start` starts
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
B=/tmp/outrank-bench R=/tmp/outrank-results SITE=${SITE-/tmp/site} PLUGIN=/tmp/outrank-plugin
LIMIT=${LIMIT:-1160}   # seconds from the start in which runs end; R/limit overrides it
export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 VLLM_USE_DEEP_GEMM=0 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
# No NVLink multicast, whatever vLLM would like.
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 VLLM_ALLREDUCE_USE_SYMM_MEM=0 VLLM_USE_NCCL_SYMM_MEM=0

# What matters most comes first: whatever finds no time is left out.
A=${PLAN_A-stock:burst,outrank:burst,oracle:burst,stock:1.3,outrank:1.3,flip:0.5/60,oracle:1.3,outrank:1.0,stock:1.0,stock:burst:1024,outrank:burst:1024}
Z=${PLAN_B-outrank:burst,stock:burst,oracle:burst,outrank:1.3,stock:1.3,flip:0.5/60,ltr:burst,none:burst,shipped:burst,outrank:burst:1024:8192,stock:burst:1024:8192,outrank:0.8/30,stock:0.8/30,ltr:1.3,cold:burst}
ONE=${PLAN_ONE-stock:burst,outrank:burst,oracle:burst,outrank:1.3,stock:1.3,flip:0.5/60,ltr:burst,shipped:burst,none:burst,oracle:1.3,ltr:1.3,outrank:burst:1024:8192,stock:burst:1024:8192}
BARE=${PLAN_BARE-vllm:burst,vllm:0.5/15}

driver() { # TAG GPUS CORES PLAN [ARGUMENT...]: starts over where an engine died
  local tag=$1 gpus=$2 cores=$3 plan=$4; shift 4
  [ -n "$plan" ] || return 0
  for _ in 1 2 3; do
    CUDA_VISIBLE_DEVICES=$gpus taskset -c "$cores" python3 "$B/bench/plugin.py" --model "$B/model" --requests "$B/requests.jsonl.gz" \
      --rankers "$B" --out "$R" --tag "$tag" --plan "$plan" --began "$BEGAN" --seconds "$LIMIT" --capacity-file "$R/capacity" \
      "$@" $MORE >>"$R/driver-$tag.log" 2>&1 && return
  done
}

with() { PYTHONPATH=$SITE:$PLUGIN:$B/bench "$@"; }
without() { PYTHONPATH=$SITE:$B/bench "$@"; }

all() {
  BEGAN=$(python3 -c 'import time; print(time.monotonic())')
  local cores half
  cores=$(env -u OMP_NUM_THREADS nproc) half=$((cores / 2))
  nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv,noheader >"$R/gpus"
  if [ "$(wc -l <"$R/gpus")" -ge 2 ]; then
    { with driver a 0 "0-$((half - 1))" "$A"; without driver bare 0 "0-$((half - 1))" "$BARE" --bare; } &
    with driver b 1 "$half-$((cores - 1))" "$Z" &
    wait
    [ -z "$TP2" ] || with driver tp2 0,1 "0-$((cores - 1))" stock:burst:64,outrank:burst:64 --tp 2 --engine-seats 256 --burst 300 --warm 20
  else
    with driver a 0 "0-$((cores - 1))" "$ONE"
    without driver bare 0 "0-$((cores - 1))" "$BARE" --bare
  fi
  touch "$R/done"
}

case $1 in
start)
  mkdir -p "$B/bench" "$R" "$SITE" "$PLUGIN"
  python3 -c 'import torch, transformers' 2>/dev/null &   # from the disk once, while vLLM is unpacked
  cp -r "$2"/. "$B"/ && cp "$HERE"/*.py "$HERE"/*.sh "$B/bench/"
  [ ! -e "$B/bundle" ] || SITE=$SITE bash "$B/bundle/install.sh" "$B/bundle"
  python3 -m zipfile -e "$B"/outrank_vllm-*.whl "$PLUGIN" || exit 1
  lscpu | grep -E '^(Model name|CPU\(s\))' >"$R/cpu"
  setsid bash "$B/bench/run_plugin.sh" all >"$R/all.log" 2>&1 </dev/null &
  echo "started after $SECONDS s"
  ;;
wait)
  while [ ! -e "$R/done" ] && [ $SECONDS -lt "$3" ]; do sleep 1; done
  tar -C "$R" -czf "$2/results.tar.gz" .
  tail -qn 40 "$R"/all.log; grep -h '^{"engine\|skipped\|engine up\|Error' "$R"/driver-*.log | tail -60
  ls -la "$R"; [ -e "$R/done" ] && echo ALL DONE
  ;;
all) all ;;
esac
