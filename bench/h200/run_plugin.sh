#!/bin/bash
# Measures the plug-in on one or two GPUs of one machine; with two, a driver on each goes through the policies in opposite order,
# and at last both GPUs serve one engine (tensor parallel 2).
# usage: run_plugin.sh start FOLDER        unpacks FOLDER (vLLM's bundle, the plug-in's wheel, requests.jsonl.gz, trained.outrank, cold.outrank,
#                                          model/config.json and these scripts) and starts the drivers, which outlive the call
#        run_plugin.sh wait OUT SECONDS    waits for them at most so long, and leaves what there is in OUT/results.tar.gz
#        run_plugin.sh all                 what `start` starts
B=/tmp/outrank-bench R=/tmp/outrank-results SITE=${SITE-/tmp/site}
LIMIT=${LIMIT:-950}   # seconds from the start in which runs on single GPUs end; R/limit overrides it
export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 VLLM_USE_DEEP_GEMM=0 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export PYTHONPATH=$SITE:$B/bench
# No NVLink multicast, whatever vLLM would like.
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 VLLM_ALLREDUCE_USE_SYMM_MEM=0 VLLM_USE_NCCL_SYMM_MEM=0

SLICES="stock:0.5/15,outrank:0.5/15,outrank:0.5/15,stock:0.5/15,stock:0.5/15,outrank:0.5/15"
SECILS="outrank:0.5/15,stock:0.5/15,stock:0.5/15,outrank:0.5/15,outrank:0.5/15,stock:0.5/15"
A=${PLAN_A-stock:burst,outrank:burst,oracle:burst,stock:1.3,outrank:1.3,outrank:1.0,stock:1.0,$SLICES,stock:burst:1024:8192,outrank:burst:1024:8192,stock:burst:1024,outrank:burst:1024}
Z=${PLAN_B-outrank:burst,stock:burst,ltr:burst,outrank:1.3,stock:1.3,stock:1.0,outrank:1.0,$SECILS,cold:burst,none:burst,oracle:1.3,ltr:1.3}
ONE=${PLAN_ONE-stock:burst,outrank:burst,oracle:burst,stock:1.3,outrank:1.3,outrank:1.0,stock:1.0,$SLICES,ltr:burst,stock:burst:1024:8192,outrank:burst:1024:8192,cold:burst,none:burst,oracle:1.3}

driver() { # TAG GPUS CORES PLAN [ARGUMENT...]: starts over where an engine died
  local tag=$1 gpus=$2 cores=$3 plan=$4; shift 4
  for _ in 1 2 3; do
    CUDA_VISIBLE_DEVICES=$gpus taskset -c "$cores" python3 "$B/bench/plugin.py" --model "$B/model" --requests "$B/requests.jsonl.gz" \
      --rankers "$B" --out "$R" --tag "$tag" --plan "$plan" --began "$BEGAN" "$@" >>"$R/driver-$tag.log" 2>&1 && return
  done
}

all() {
  BEGAN=$(python3 -c 'import time; print(time.monotonic())')
  nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv,noheader >"$R/gpus"
  local n; n=$(wc -l <"$R/gpus")
  local both=(--seconds "$LIMIT" --capacity-file "$R/capacity")
  if [ "$n" -ge 2 ]; then
    local half=$(($(nproc) / 2))
    driver a 0 "0-$((half - 1))" "$A" "${both[@]}" $MORE &
    driver b 1 "$half-$((2 * half - 1))" "$Z" "${both[@]}" $MORE &
    wait
    rm -f "$R/limit"
    driver tp2 0,1 "0-$((2 * half - 1))" "stock:burst:64,outrank:burst:64" --seconds 100000 --capacity-file "$R/capacity" \
      --tp 2 --engine-seats 256 --burst 300 --warm 20 $MORE
  else
    driver a 0 "0-$(($(nproc) - 1))" "$ONE" "${both[@]}" $MORE
  fi
  touch "$R/done"
}

case $1 in
start)
  mkdir -p "$B" "$R" "$SITE"
  cp -r "$2"/. "$B"/
  [ -e "$B/bundle" ] && SITE=$SITE bash "$B/bundle/install.sh" "$B/bundle"
  python3 -m zipfile -e "$B"/outrank_vllm-*.whl "$SITE" || exit 1
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
