"""The small encoder that ships: its shape, and what teach.py and settle.py share."""
import pickle

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

PIECES, LAYERS, WIDTH, INNER, HALF, HIDDEN, HEAD = 30522, 2, 64, 2, 32, 128, 16
# What may be learned from for weights that ship: traces with an MIT or Apache-2.0 licence, and prompts of the project's own.
LICENSED = ("alpaca-libre-gpt35", "arenahard", "chatdoctor", "gpteacher", "ifbench", "mifeval", "mmlupro", "own/")


def learned(names, without):
    return [name for name in sorted(names) if name.startswith(LICENSED) and not (without and name.startswith(without))]


def cut(pieces, half=HALF):
    """The first and the last pieces of a text."""
    return pieces if len(pieces) <= 2 * half else np.concatenate([pieces[:half], pieces[-half:]])


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.qkv, self.o = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.n2, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, INNER * WIDTH), nn.Linear(INNER * WIDTH, WIDTH)

    def forward(self, x, mask):
        rows, length, _ = x.shape
        q, k, v = self.qkv(self.n1(x)).view(rows, length, 3, WIDTH // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :]).transpose(1, 2).reshape(rows, length, WIDTH)
        x = x + self.o(mixed)
        return x + self.down(F.relu(self.up(self.n2(x))))


class Student(nn.Module):
    """Pieces -> `outputs` numbers, the guess first."""

    def __init__(self, outputs):
        super().__init__()
        self.e, self.pos = nn.Embedding(PIECES, WIDTH), nn.Parameter(torch.randn(2 * HALF, WIDTH) * 0.05)
        self.b = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.n, self.a = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)
        self.h1, self.h2 = nn.Linear(3 * WIDTH + 1, HIDDEN), nn.Linear(HIDDEN, outputs)

    def forward(self, ids, mask):
        x = self.e(ids) + self.pos[: ids.shape[1]]
        for layer in self.b:
            x = layer(x, mask)
        x, inside = self.n(x), mask[..., None]
        count = inside.sum(1)
        mean, largest = (x * inside).sum(1) / count, x.masked_fill(~inside, -1e4).max(1).values
        share = torch.softmax(self.a(x).masked_fill(~inside, -1e4), 1)
        pooled = torch.cat([mean, largest, (share * x).sum(1), torch.log1p(count.float())], 1)
        return self.h2(F.relu(self.h1(pooled)))


def save(student, path, outputs=None):
    """Word vectors as rows of 8-bit integers and a scale each; of the outputs the first ones."""
    kept = {}
    for name, value in student.state_dict().items():
        value = value.float().cpu().numpy()
        if name == "e.weight":
            scale = np.abs(value).max(1, keepdims=True) / 127 + 1e-9
            kept[name] = (np.round(value / scale).astype(np.int8), scale.astype(np.float32))
        else:
            kept[name] = value[:outputs] if name.startswith("h2") else value
    with open(path, "wb") as file:
        pickle.dump(((0, LAYERS, WIDTH, INNER, HALF), kept), file)


def load(path):
    _, kept = pickle.load(open(path, "rb"))
    student = Student(len(kept["h2.bias"]))
    whole = {name: value[0].astype(np.float32) * value[1] if isinstance(value, tuple) else value for name, value in kept.items()}
    student.load_state_dict({name: torch.tensor(value) for name, value in whole.items()})
    return student
