"""Has SmolLM2-135M-Instruct write what users would ask: it is given the start of a chat up to the user's turn, and samples the turn
(as in Magpie, Xu et al. 2024). Needs torch, tokenizers, gguf and a GPU.

usage: python3 generate.py MODEL.gguf PREPARED_DIR --texts N     (writes PREPARED_DIR/generated.json)

Four batches in ten are free; in the others a turn begins with the first 1 to 9 tokens of a prompt that may be learned from, so that
the texts are of its kind and still new. Temperature 1; tokens less likely than 2 % of the likeliest are left out.
"""
import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gguf import GGUFReader, dequantize

from smollm import Facts, tokenizer_of, turned

BATCH, TOKENS, PREFILL = 4096, 96, 1024
OPENING_TOKENS = [0, 0, 0, 0, 1, 2, 3, 4, 6, 9]
SEED, LEAST = 7, math.log(0.02)
END = 2
PREFIX = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"


class Model(Facts):
    """Llama's shape, with room for `rows` texts of `places` tokens."""

    def __init__(self, reader, rows, places):
        super().__init__(reader)
        weight = lambda tensor: torch.tensor(dequantize(tensor.data, tensor.tensor_type)).to("cuda", torch.bfloat16)
        self.w = {tensor.name: weight(tensor) for tensor in reader.tensors}
        self.qkv = [torch.cat([self.w[f"blk.{i}.attn_{part}.weight"] for part in "qkv"]) for i in range(self.layers)]
        self.gated = [torch.cat([self.w[f"blk.{i}.ffn_{part}.weight"] for part in ("gate", "up")]) for i in range(self.layers)]
        self.k = torch.zeros(self.layers, rows, self.shared, places, self.head, device="cuda", dtype=torch.bfloat16)
        self.v = torch.zeros_like(self.k)
        pairs = torch.arange(0, self.head, 2, device="cuda").float() / self.head
        angles = torch.arange(places, device="cuda").float()[:, None] * self.base ** -pairs
        self.cos, self.sin = angles.cos().bfloat16(), angles.sin().bfloat16()

    def turned(self, x, at):
        return turned(x, self.cos[at][:, None], self.sin[at][:, None])

    def norm(self, x, name):
        return F.rms_norm(x, (self.width,), self.w[name], self.epsilon)

    def __call__(self, ids, at, rows=slice(None)):
        """Logits after the last of the tokens `ids`, which stand at the places `at`, in the rows of the cache that are named."""
        count, length = ids.shape
        places = self.k.shape[3]
        allowed = torch.arange(places, device="cuda") <= at[:, None, :, None]
        x, to = F.embedding(ids, self.w["token_embd.weight"]), at[:, None, :, None].expand(count, self.shared, length, self.head)
        for i in range(self.layers):
            qkv = F.linear(self.norm(x, f"blk.{i}.attn_norm.weight"), self.qkv[i]).view(count, length, -1, self.head).transpose(1, 2)
            q, k, v = qkv.split([self.heads, self.shared, self.shared], 1)
            keys, values = self.k[i, rows], self.v[i, rows]
            keys.scatter_(2, to, self.turned(k, at))
            values.scatter_(2, to, v)
            # Queries that share keys lie together, so a step of one token multiplies each key once.
            q = self.turned(q, at).reshape(count, self.shared, -1, self.head)
            scores = (q @ keys.transpose(-1, -2)).view(count, self.heads, length, places) * self.head**-0.5
            share = torch.softmax(scores.masked_fill(~allowed, -1e4).float(), -1).bfloat16()
            mixed = (share.view(count, self.shared, -1, places) @ values).view(count, self.heads, length, self.head)
            x = x + F.linear(mixed.transpose(1, 2).reshape(count, length, -1), self.w[f"blk.{i}.attn_output.weight"])
            gate, up = F.linear(self.norm(x, f"blk.{i}.ffn_norm.weight"), self.gated[i]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, self.w[f"blk.{i}.ffn_down.weight"])
        return F.linear(self.norm(x[:, -1], "output_norm.weight"), self.w["token_embd.weight"])


def sampled(logits):
    logits = logits.float()
    likely = logits >= logits.max(-1, keepdim=True).values + LEAST
    gumbel = -torch.log(-torch.log(torch.rand_like(logits).clamp_(1e-9, 1 - 1e-7)))
    return torch.where(likely, logits + gumbel, -1e9).argmax(-1, keepdim=True)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prepared")
    parser.add_argument("--texts", type=int, default=262_144)
    args = parser.parse_args()
    reader, began = GGUFReader(args.model), time.monotonic()
    tokenizer = tokenizer_of(reader)
    prefix = tokenizer.encode(PREFIX).ids
    openings = [tokenizer.encode(text).ids for text in json.loads((Path(args.prepared) / "openings.json").read_text())]
    model = Model(reader, BATCH, len(prefix) + TOKENS)
    torch.manual_seed(SEED)
    random, texts = np.random.default_rng(SEED), []
    ids, at = (torch.zeros(BATCH, 1, dtype=torch.long, device="cuda") for _ in range(2))

    def step():
        ids.copy_(sampled(model(ids, at)))
        at.add_(1)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    batch = 0
    while len(texts) < args.texts:
        opening = OPENING_TOKENS[batch % len(OPENING_TOKENS)]
        long_enough = [tokens[:opening] for tokens in openings if len(tokens) >= opening]
        begun = torch.tensor([prefix + long_enough[row] for row in random.integers(len(long_enough), size=BATCH)], device="cuda")
        for first in range(0, BATCH, PREFILL):
            rows = slice(first, first + PREFILL)
            ids[rows] = sampled(model(begun[rows], torch.arange(begun.shape[1], device="cuda").expand(PREFILL, -1), rows))
        at.fill_(begun.shape[1])
        said = [begun[:, len(prefix):], ids.clone()]
        for _ in range(TOKENS - opening - 1):
            graph.replay()
            said.append(ids.clone())
        turns = [turn[: turn.index(END)] if END in turn else turn for turn in torch.cat(said, 1).tolist()]
        texts += [text for text in tokenizer.decode_batch(turns, skip_special_tokens=True) if len(text.strip()) > 3]
        batch += 1
        print(f"{time.monotonic() - began:.0f} s, {len(texts)} texts", flush=True)
    (Path(args.prepared) / "generated.json").write_text(json.dumps(sorted(set(texts))))


if __name__ == "__main__":
    main()
