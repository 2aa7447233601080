"""A trained encoder as the file that outrank reads (crates/ranker/src/encoder/file.rs says how it is laid out).

usage: python3 pack.py ENCODER.pkl TOKENIZER.json OUT.bin     (needs numpy)
"""
import hashlib
import json
import os
import pickle
import struct
import sys

import numpy as np

VERSION = 2
PIECES = 30522


def fingerprint(piece):
    """FNV-1a over the characters, a piece that continues a word begun by '#'; finished by the mixer of splitmix64."""
    value = 0xCBF29CE484222325
    for char in ("#" + piece[2:]) if piece.startswith("##") and len(piece) > 2 else piece:
        value = (value ^ ord(char)) * 0x100000001B3 % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value >> 32


def main(encoder, tokenizer, out):
    shape, weights = pickle.load(open(encoder, "rb"))
    kinds, half = shape.split(":")
    width = len(weights["n.weight"])
    convolutions, attentions = kinds.count("c"), kinds.count("a")
    assert kinds == "c" * convolutions + "a" * attentions
    vocabulary = json.load(open(tokenizer))["model"]["vocab"]
    pieces = sorted(vocabulary, key=vocabulary.get)
    assert len(pieces) == PIECES and vocabulary[pieces[-1]] == PIECES - 1
    special = [piece.startswith("[") and len(piece) > 1 for piece in pieces]
    prints = np.array([0 if hidden else fingerprint(piece) for piece, hidden in zip(pieces, special)], "<u4")
    whole = prints[~np.array(special)]
    assert len(set(whole.tolist())) == len(whole), "two pieces share a fingerprint"
    integers, scales = weights.pop("e.weight")
    names = ["pos"]
    for layer, mixing in enumerate(kinds):
        mix = ["c"] if mixing == "c" else [f"{part}.{kind}" for part in ("qkv", "o") for kind in ("weight", "bias")]
        rest = [f"{part}.{kind}" for part in ("n2", "up", "down") for kind in ("weight", "bias")]
        names += [f"b.{layer}.{name}" for name in ["n1.weight", "n1.bias", *mix, *rest]]
    names += [f"{part}.{kind}" for part in ("n", "a", "h1", "h2") for kind in ("weight", "bias")]
    assert sorted(names) == sorted(weights), set(names) ^ set(weights)
    # Matrices with the input as rows, so that one input's share of all outputs lies together.
    parts = [weights[name].T if weights[name].ndim == 2 and name.endswith("weight") else weights[name] for name in names]
    flat = np.concatenate([np.ascontiguousarray(part).ravel() for part in parts]).astype("<f2")
    inner, heads, hidden, outputs = (weights[name].shape[0] for name in ("b.0.up.weight", "a.weight", "h1.weight", "h2.weight"))
    data = b"OUTRANKE" + struct.pack("<11I", VERSION, PIECES, width, convolutions, attentions, inner, int(half), heads, hidden, outputs, flat.size)
    data += prints.tobytes() + scales.astype("<f2").tobytes() + integers.tobytes() + flat.tobytes()
    data += hashlib.sha256(data).digest()
    with open(out + ".tmp", "wb") as file:
        file.write(data)
    os.replace(out + ".tmp", out)


if __name__ == "__main__":
    main(*sys.argv[1:4])
