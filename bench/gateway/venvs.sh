#!/usr/bin/env bash
# Installs the outside judges and the routers that the gateway is measured beside, each into a virtual environment of its own.
# usage: venvs.sh NAME...      NAME: vllm-router | sglang-router | judges | guidellm
set -euo pipefail
cd "$(dirname "$0")/../.."
for name in "$@"; do
    case $name in
        vllm-router) packages=(vllm-router==0.1.17) ;;
        sglang-router) packages=(sglang-router==0.3.2) ;;
        judges) packages=(openai==3.54.0 schemathesis==4.32.0) ;;
        # transformers 5 is newer than this version of guidellm knows.
        guidellm) packages=(guidellm==0.3.1 "transformers<5") ;;
        *) echo "venvs.sh: unknown environment $name" >&2; exit 2 ;;
    esac
    folder=.venv/$name
    wanted="${packages[*]}"
    [ "$(cat "$folder/installed.txt" 2>/dev/null)" = "$wanted" ] && continue
    echo "venvs: installing $wanted into $folder ..." >&2
    "${PYTHON:-python3}" -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}"
    echo "$wanted" >"$folder/installed.txt"
done
