"""MiniLM-L6 fine-tuned with ListMLE (the recipe of "Efficient LLM Scheduling by Learning to Rank", with a smaller encoder),
beside which docs/ranker.md puts our ranker. Reads what prepare.py wrote; needs torch and a GPU.

usage: python3 minilm.py PREPARED_DIR OUT.json [TRACE | without:FAMILY]...     (nothing named: everything)

For every trace: trained on its learned prompts (at most 10,000), Kendall tau-b on the held-out ones. For every family left out:
trained on the other families (at most 10,000 prompts each) and on the project's own prompts with estimated lengths, where they
were prepared; tau-b on the held-out prompts of the one left out.
Settings are fixed beforehand: lists of 32 prompts of one model, four lists a step, AdamW (5e-5, head 1e-3, weight decay
0.01), prompts cut to their first and last 96 tokens, mean pooling, one linear head, 5 epochs (15 below 2,000 prompts).
"""
import json
import lzma
import os
import pickle
import random
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

LISTS, LIST = 4, 32
LAYERS, HEADS, WIDTH = 6, 12, 384
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def family(name):
    if name.startswith("gpteacher"):
        return "gpteacher"
    if name.startswith("own/"):
        return name
    stem = name.split("-")[0]
    return {"halueval": "alpaca"}.get(stem, stem)


class Encoder(nn.Module):
    """BERT as published, from a dict of its weights; mean pooling, and a linear head that gives one score."""

    def __init__(self, weights):
        super().__init__()
        self.w = nn.ParameterDict({k.replace(".", "/"): nn.Parameter(v.clone()) for k, v in weights.items() if "pooler" not in k})
        self.head = nn.Linear(WIDTH, 1)

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}/weight"], self.w[f"{name}/bias"])

    def norm(self, x, name):
        return F.layer_norm(x, (WIDTH,), self.w[f"{name}/weight"], self.w[f"{name}/bias"], 1e-12)

    def forward(self, ids, mask):
        n, length = ids.shape
        e = "embeddings"
        x = self.w[f"{e}/word_embeddings/weight"][ids] + self.w[f"{e}/position_embeddings/weight"][:length] + self.w[f"{e}/token_type_embeddings/weight"][0]
        x = self.norm(x, f"{e}/LayerNorm")
        allowed = mask[:, None, None, :]
        for layer in range(LAYERS):
            p = f"encoder/layer/{layer}"
            q, k, v = (self.linear(x, f"{p}/attention/self/{part}").view(n, length, HEADS, -1).transpose(1, 2) for part in ("query", "key", "value"))
            a = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).reshape(n, length, WIDTH)
            x = self.norm(x + self.linear(F.dropout(a, 0.1, self.training), f"{p}/attention/output/dense"), f"{p}/attention/output/LayerNorm")
            h = self.linear(F.gelu(self.linear(x, f"{p}/intermediate/dense")), f"{p}/output/dense")
            x = self.norm(x + F.dropout(h, 0.1, self.training), f"{p}/output/LayerNorm")
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(F.dropout(pooled, 0.1, self.training)).squeeze(-1).float()


def listmle(scores, lengths):
    """-log likelihood of the order of lengths, shortest first; a higher score is shorter; ties at random."""
    order = torch.argsort(lengths + torch.rand_like(lengths) * 1e-3, dim=1)
    s = scores.gather(1, order)
    tails = torch.logcumsumexp(s.flip(1), 1).flip(1)
    return (tails - s).sum(1).mean()


class Bench:
    def __init__(self, folder):
        flat, offsets, self.sets = pickle.load(lzma.open(os.path.join(folder, "tokens.xz")))
        flat = flat.astype(np.int64)
        self.prompts = [flat[a:b] for a, b in zip(offsets, offsets[1:])]
        raw = pickle.load(lzma.open(os.path.join(folder, "minilm.xz")))
        self.weights = {k: torch.tensor((v[0].astype(np.float32) * v[1].astype(np.float32)) if isinstance(v, tuple) else v.astype(np.float32))
                        for k, v in raw.items()}

    def batch(self, rows):
        length = max(len(self.prompts[r]) for r in rows)
        ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), bool)
        for i, r in enumerate(rows):
            p = self.prompts[r]
            ids[i, :len(p)], mask[i, :len(p)] = p, True
        return torch.tensor(ids).to(DEVICE, non_blocking=True), torch.tensor(mask).to(DEVICE, non_blocking=True)

    def train(self, groups, epochs, seed=1):
        """groups: lists of (prompt, length), one a model."""
        torch.manual_seed(seed)
        rng = random.Random(seed)
        model = Encoder(self.weights).to(DEVICE)
        head = list(model.head.parameters())
        options = torch.optim.AdamW([{"params": list(model.w.parameters()), "lr": 5e-5}, {"params": head, "lr": 1e-3}], weight_decay=0.01)
        model.train()
        for _ in range(epochs):
            lists = []
            for rows in groups:
                rows = list(rows)
                rng.shuffle(rows)
                lists += [rows[i:i + LIST] for i in range(0, len(rows) - LIST + 1, LIST)]
            rng.shuffle(lists)
            for at in range(0, len(lists), LISTS):
                step = lists[at:at + LISTS]
                ids, mask = self.batch([r for rows in step for r, _ in rows])
                lengths = torch.tensor([[float(np.log1p(n)) for _, n in rows] for rows in step], device=DEVICE)
                with torch.autocast(DEVICE, torch.bfloat16):
                    scores = model(ids, mask)
                loss = listmle(scores.view(len(step), LIST), lengths)
                options.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                options.step()
        return model

    @torch.no_grad()
    def tau(self, model, rows):
        model.eval()
        out = []
        for at in range(0, len(rows), 256):
            ids, mask = self.batch([r for r, _ in rows[at:at + 256]])
            with torch.autocast(DEVICE, torch.bfloat16):
                out.append(-model(ids, mask))
        return tau_b(torch.cat(out).double().cpu().numpy(), np.array([n for _, n in rows]))

    def split(self, name):
        learned = [(r, n) for r, n, held in self.sets[name] if not held]
        return learned, [(r, n) for r, n, held in self.sets[name] if held]


def tau_b(x, y):
    """Kendall's tau-b, by all pairs."""
    both = a = b = 0.0
    for i in range(0, len(x), 512):
        dx, dy = np.sign(x[i:i + 512, None] - x[None]), np.sign(y[i:i + 512, None] - y[None])
        both, a, b = both + (dx * dy).sum(), a + (dx * dx).sum(), b + (dy * dy).sum()
    return float(both / np.sqrt(a * b))


def without(bench, left, limit=10_000):
    """What a model that never saw the family `left` is trained on: one group a trace."""
    names = [name for name in sorted(bench.sets) if family(name) not in (left, "mixed") and not name.startswith("licensed/")]
    siblings = {name: sum(family(other) == family(name) for other in names) for name in names}
    return [bench.split(name)[0][: None if name.startswith("own/") else limit // siblings[name]] for name in names]


def main(folder, out, *wanted):
    began = time.monotonic()
    bench, result = Bench(folder), {"own": {}, "left_out": {}, "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"}
    traces = [name for name in sorted(bench.sets) if "/" not in name]
    wanted = wanted or ["without:flask", "without:mmlupro", "without:instructionwild", *traces]

    def save():
        result["seconds"] = time.monotonic() - began
        json.dump(result, open(out, "w"), indent=1)

    for name in wanted:
        if name.startswith("without:"):
            left = name.removeprefix("without:")
            model = bench.train(without(bench, left), 3)
            found = {name: bench.tau(model, bench.split(name)[1]) for name in traces if family(name) == left}
            result["left_out"].update(found)
            print(f"{time.monotonic() - began:.0f} s without {left}", {k: round(v, 3) for k, v in found.items()}, flush=True)
        else:
            learned, held = bench.split(name)
            start = time.monotonic()
            model = bench.train([learned], 5 if len(learned) >= 2000 else 15)
            result["own"][name] = {"tau_b": bench.tau(model, held), "train_s": time.monotonic() - start, "prompts": len(learned)}
            print(f"{time.monotonic() - began:.0f} s {name} {result['own'][name]['tau_b']:.3f}", flush=True)
        save()


if __name__ == "__main__":
    main(*sys.argv[1:])
