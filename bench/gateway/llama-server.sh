#!/usr/bin/env bash
# Builds llama.cpp's own server from the sdist of llama-cpp-python, which vendors llama.cpp (some ten minutes on two cores).
# usage: llama-server.sh FOLDER      leaves FOLDER/llama-server and FOLDER/version.txt
set -euo pipefail

version=0.3.36
folder=$1
say() { printf 'llama-server: %s\n' "$*" >&2; }

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ -x "$folder/llama-server" ]; then
    say "$folder/llama-server is there"
    exit 0
fi
if [ ! -d "$folder/source" ]; then
    say "fetching the sources of llama-cpp-python $version from PyPI ..."
    work=$(mktemp -d "$folder/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary :all: \
        --dest "$work" "llama-cpp-python==$version" || python3 -m pip download --quiet --disable-pip-version-check \
        --no-deps --no-binary :all: --dest "$work" "llama-cpp-python==$version"
    tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work"
    mv "$work/llama_cpp_python-$version/vendor/llama.cpp" "$folder/source"
fi
say "building ..."
# Static, for this machine's instructions, without curl, TLS and the web page: nothing is fetched by the build.
nice -n 10 cmake -S "$folder/source" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF >"$folder/cmake.log" 2>&1
nice -n 10 cmake --build "$folder/build" --target llama-server -j "${JOBS:-2}" >"$folder/build.log" 2>&1
cp "$folder/build/bin/llama-server" "$folder/llama-server"
{ echo "llama-cpp-python $version"; "$folder/llama-server" --version 2>&1 | head -2; } >"$folder/version.txt"
say "$folder/llama-server"
