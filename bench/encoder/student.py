"""The small encoder that ships: its shape, and how it is saved."""
import pickle

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

PIECES, WIDTH, INNER, HEAD, TAPS, POOLING_HEADS, HIDDEN = 30522, 64, 2, 16, 5, 8, 128


def cut(pieces, half):
    """The first and the last pieces of a text, a list or an array."""
    if len(pieces) <= 2 * half:
        return pieces
    ends = pieces[:half], pieces[-half:]
    return ends[0] + ends[1] if isinstance(pieces, list) else np.concatenate(ends)


class Layer(nn.Module):
    """A depthwise convolution or attention, then two dense layers; norms first, and around both the way past."""

    def __init__(self, kind):
        super().__init__()
        self.n1 = nn.LayerNorm(WIDTH)
        if kind == "c":
            self.c = nn.Parameter(torch.randn(TAPS, WIDTH) * 0.3)
        else:
            self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.n2, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, INNER * WIDTH), nn.Linear(INNER * WIDTH, WIDTH)

    def forward(self, x, mask):
        rows, length, _ = x.shape
        normed = self.n1(x)
        if hasattr(self, "c"):
            padded = F.pad(normed * mask[..., None], (0, 0, TAPS // 2, TAPS // 2))
            x = x + sum(padded[:, tap: tap + length] * self.c[tap] for tap in range(TAPS))
        else:
            q, k, v = self.qkv(normed).view(rows, length, 3, WIDTH // HEAD, HEAD).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
            x = x + self.o(mixed.transpose(1, 2).reshape(rows, length, WIDTH))
        return x + self.down(F.relu(self.up(self.n2(x))))


class Words(nn.Module):
    """A vector for each piece, made from that of a larger model, so that a piece that is seldom met moves with those like it; each may
    leave its place besides (`moved`, at a rate of its own)."""

    def __init__(self, vectors):
        super().__init__()
        self.register_buffer("from_", vectors / vectors.std())
        main = torch.pca_lowrank(vectors, WIDTH + 32, niter=6)[2][:, :WIDTH]
        self.straight, self.bend, self.back = nn.Linear(vectors.shape[1], WIDTH), nn.Linear(vectors.shape[1], 256), nn.Linear(256, WIDTH)
        self.straight.weight.data = (main / (self.from_ @ main).std()).T.contiguous()
        for zero in (self.straight.bias, self.back.weight, self.back.bias):
            nn.init.zeros_(zero)
        self.moved = nn.Parameter(torch.zeros(len(vectors), WIDTH))

    def table(self):
        return self.straight(self.from_) + self.back(F.gelu(self.bend(self.from_))) + self.moved


class Student(nn.Module):
    """Pieces -> `outputs` numbers, the guess first. A shape says what the layers mix with, c a convolution, a attention, and how many
    pieces are read from either end: `ca:64`."""

    def __init__(self, shape, outputs, vectors):
        super().__init__()
        kinds, half = shape.split(":")
        self.shape, self.half = shape, int(half)
        self.e, self.pos = Words(vectors), nn.Parameter(torch.randn(2 * self.half, WIDTH) * 0.05)
        self.b = nn.ModuleList(Layer(kind) for kind in kinds)
        self.n, self.a = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, POOLING_HEADS)
        self.h1, self.h2 = nn.Linear((2 + POOLING_HEADS) * WIDTH + 1, HIDDEN), nn.Linear(HIDDEN, outputs)

    def forward(self, ids, mask):
        x = F.embedding(ids, self.e.table()) + self.pos[: ids.shape[1]]
        for layer in self.b:
            x = layer(x, mask)
        x, inside = self.n(x), mask[..., None]
        count = inside.sum(1)
        mean, largest = (x * inside).sum(1) / count, x.masked_fill(~inside, -1e4).max(1).values
        shares = torch.softmax(self.a(x).masked_fill(~inside, -1e4), 1)
        attended = torch.einsum("bth,btw->bhw", shares, x).flatten(1)
        pooled = torch.cat([mean, largest, attended, torch.log1p(count.to(x.dtype))], 1)
        return self.h2(F.relu(self.h1(pooled)))


def save(student, path):
    """Word vectors as rows of 8-bit integers and a scale each; of the outputs the guess."""
    weights = {name: value for name, value in student.state_dict().items() if not name.startswith("e.")}
    with torch.no_grad():
        table = student.e.table().float().cpu().numpy()
    scale = np.abs(table).max(1, keepdims=True) / 127 + 1e-9
    kept = {"e.weight": (np.round(table / scale).astype(np.int8), scale.astype(np.float32))}
    for name, value in weights.items():
        value = value.float().cpu().numpy()
        kept[name] = value[:1] if name.startswith("h2") else value
    with open(path, "wb") as file:
        pickle.dump((student.shape, kept), file)
