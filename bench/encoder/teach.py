"""Teaches the small encoder what fine-tuned MiniLMs say. Needs torch and a GPU. (Two variants side by side, one on each
of two H100s, took 415 s: teachers 80 s, judging 79 s, the student the rest.)

usage: python3 teach.py PREPARED_DIR OUT.pkl [--without FAMILY]     (PREPARED_DIR: of prepare.py, with the project's own prompts)

Two MiniLMs are fine-tuned with the recipe of minilm.py on the learned part of the licensed traces and on the project's own prompts,
one of them without the second of two sets of own prompts, where there are two. Two million texts are made from those prompts: words
swapped for neighbours, pieces cut out, beginnings of one joined to ends of another. The student learns the mean of what the two say
of each text, standardised, and, as a side task, 16 directions of each teacher's pooled vectors. It is trained by the clock.
"""
import argparse
import multiprocessing
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import minilm
import student as small

TEXTS, TRAIN_S, BATCH, RATE, DIRECTIONS, TEACHER_HALF = 2_000_000, 240, 2048, 3e-3, 16, 96
ROWS = 10_000
MASK, START, END = 103, 101, 102
WHOLE_WORDS = slice(1996, 29612)
made_from = {}


def teach(bench, names, seed):
    siblings = {name: sum(minilm.family(other) == minilm.family(name) for other in names) for name in names}
    rows = [bench.split(name)[0][: None if name.startswith("own/") else ROWS // siblings[name]] for name in names]
    return bench.train(rows, 3, seed=seed).eval()


def make_texts(job):
    """Texts that nobody wrote, for the teachers to judge."""
    seed, count = job
    prompts, rows, neighbours, words = (made_from[key] for key in ("prompts", "rows", "neighbours", "words"))
    random, out = np.random.default_rng(seed), []
    for _ in range(count):
        text, kind = prompts[rows[random.integers(len(rows))]][1:-1], random.random()
        if kind < 0.35:
            other = prompts[rows[random.integers(len(rows))]][1:-1]
            if len(text) > 4 and len(other) > 4:
                text = np.concatenate([text[: random.integers(2, len(text))], other[random.integers(0, len(other) - 2):]])
        elif kind < 0.5 and len(text) > 6:
            at = random.integers(0, len(text) // 2)
            text = text[at: at + random.integers(3, len(text))]
        text = text.copy()
        share = random.choice([0.05, 0.15, 0.3])
        swapped = (random.random(len(text)) < share) & words[text]
        text[swapped] = neighbours[text[swapped], random.integers(0, 8, swapped.sum())]
        out.append(small.cut(np.concatenate([[START], text, [END]]), TEACHER_HALF))
    return out


def pack(texts, half):
    ids, lengths = np.zeros((len(texts), 2 * half), np.int32), np.zeros(len(texts), np.int32)
    for row, text in enumerate(texts):
        text = small.cut(text, half)
        ids[row, : len(text)], lengths[row] = text, len(text)
    return torch.tensor(ids).cuda(), torch.tensor(lengths).cuda()


@torch.no_grad()
def judged(teacher, ids, lengths, real):
    """The teacher's guess of each text, standardised over the first `real`, and the main directions of its pooled vectors."""
    order, guesses = torch.argsort(lengths), torch.zeros(len(ids), device="cuda")
    pooled, seen = torch.zeros(len(ids), minilm.WIDTH, device="cuda", dtype=torch.bfloat16), []
    hook = teacher.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for at in range(0, len(ids), 1024):
        rows = order[at: at + 1024]
        longest = int(lengths[rows].max())
        mask = torch.arange(longest, device="cuda")[None] < lengths[rows][:, None]
        with torch.autocast("cuda", torch.bfloat16):
            guesses[rows] = -teacher(ids[rows, :longest].long(), mask).float()
        pooled[rows] = seen.pop().bfloat16()
    hook.remove()
    pooled = pooled.float() - pooled.float().mean(0)
    some = torch.randperm(len(ids), device="cuda")[:50_000]
    directions = pooled @ torch.pca_lowrank(pooled[some], 24, niter=4)[2][:, :DIRECTIONS]
    return (guesses - guesses[:real].mean()) / guesses[:real].std(), directions / directions[:, 0].std()


def train(student, ids, lengths, targets):
    word_vectors = student.e.weight
    others = [value for name, value in student.named_parameters() if name != "e.weight"]
    optimiser = torch.optim.AdamW([{"params": others}, {"params": [word_vectors]}], lr=RATE, weight_decay=0.01, fused=True)
    places, began = torch.arange(2 * small.HALF, device="cuda")[None], time.monotonic()
    while True:
        order = torch.randperm(len(targets), device="cuda")
        for at in range(0, len(targets) - BATCH, BATCH):
            done = (time.monotonic() - began) / TRAIN_S
            if done >= 1:
                return
            for group in optimiser.param_groups:
                group["lr"] = RATE * min(1, done / 0.05 + 0.02) * max(0.01, 1 - done)
            rows = order[at: at + BATCH]
            text = ids[rows].long()
            text = torch.where(torch.rand_like(text, dtype=torch.float) < 0.05, MASK, text)
            said, wanted = student(text, places < lengths[rows][:, None]), targets[rows]
            loss = F.smooth_l1_loss(said[:, 0], wanted[:, 0], beta=0.5) + 0.3 * F.mse_loss(said[:, 1:], wanted[:, 1:])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(others, 1.0)
            optimiser.step()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared")
    parser.add_argument("out")
    parser.add_argument("--without", help="a family of licensed traces to leave out, for docs/ranker.md")
    args = parser.parse_args()
    bench = minilm.Bench(args.prepared)
    names = small.learned(bench.sets, args.without)
    own = [name for name in names if name.startswith("own/")]
    teachers = [teach(bench, [name for name in names if name not in own[1:]], 1), teach(bench, names, 2)]
    vectors = bench.weights["embeddings.word_embeddings.weight"].cuda()
    unit, words = F.normalize(vectors, dim=1), np.zeros(len(vectors), bool)
    words[WHOLE_WORDS] = True
    near = [(unit[at: at + 2000] @ unit.T).topk(9).indices[:, 1:] for at in range(0, len(unit), 2000)]
    rows = np.array(sorted({row for name in names for row, _ in bench.split(name)[0]}))
    made_from.update(prompts=bench.prompts, rows=rows, neighbours=torch.cat(near).cpu().numpy(), words=words)
    with multiprocessing.get_context("fork").Pool() as pool:
        made = pool.map(make_texts, [(seed, TEXTS // 140) for seed in range(140)], chunksize=1)
    texts = [bench.prompts[row] for row in rows] + [text for part in made for text in part]
    whole = pack(texts, TEACHER_HALF)
    (one, one_directions), (two, two_directions) = (judged(teacher, *whole, len(rows)) for teacher in teachers)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(1)
    main_directions = torch.pca_lowrank(vectors, small.WIDTH + 32, niter=6)[2][:, : small.WIDTH]
    student = small.Student(1 + 2 * DIRECTIONS).cuda()
    student.e.weight.data = vectors @ main_directions
    student.e.weight.data /= student.e.weight.data.std()
    targets = torch.cat([((one + two) / 2)[:, None], one_directions, two_directions], 1).half().float()
    train(student, *pack(texts, small.HALF), targets)
    small.save(student, args.out)


if __name__ == "__main__":
    main()
