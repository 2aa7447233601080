#!/usr/bin/env bash
# Installs what the build needs and this machine lacks: CMake, a C++ compiler, libclang with its headers, pip.
# Does nothing, and needs no root, where all of it is there.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }
missing=()
command -v cmake >/dev/null || missing+=(cmake)
command -v c++ >/dev/null || missing+=(g++)
command -v make >/dev/null || missing+=(make)
compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null &&
    compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null || missing+=(libclang-dev)
command -v python3 >/dev/null || missing+=(python3)
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)

if ! command -v cargo >/dev/null; then
    say "Rust is missing: install it with rustup (1.95 or newer), then run this again"
    exit 1
fi
if [ ${#missing[@]} -eq 0 ]; then
    say "everything the build needs is installed"
    exit 0
fi
say "missing: ${missing[*]}"
if ! command -v apt-get >/dev/null; then
    say "this is not a Debian system: install these with its own package manager, then run this again"
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { say "run as root: apt-get install ${missing[*]}"; exit 1; }
    as_root=(sudo)
fi
say "installing with apt-get ..."
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
say "done"
