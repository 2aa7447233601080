"""Teaches the small encoder what fine-tuned MiniLMs say. Needs torch, tokenizers and a GPU (on an H100: teachers 112 s, four at a
time, judging 45 s, the student 190 s beside three others).

usage: python3 teach.py PREPARED_DIR TOKENIZER.json OUT_DIR --shapes caa:48,ca:64     (PREPARED_DIR: of prepare.py and generate.py)

Writes a student of each shape, as `caa-48.pkl`.

Prompts that may be learned from are dealt out to four folds. Four MiniLMs are fine-tuned with the recipe of minilm.py, each on three
of them, and a prompt is judged by the one that has not seen it: so the guess on a learned prompt is as good as on any other, and a
ranker that is trained on it later does not believe it too much. Texts that no one answered (generate.py's, and splices of them) are
judged by all four, splices of prompts of one fold by the teacher without that fold. The student learns the guess, and as a side
task, where no teacher has seen a part of the text, 16 directions of two teachers' pooled vectors.
Prints tau-b of the guess on held-out prompts of every trace, and on learned ones.
"""
import argparse
import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn

import minilm
import student as small

# What may be learned from for weights that ship: traces with an MIT or Apache-2.0 licence, and prompts of the project's own. mmlupro
# could be, and is left out: so docs/ranker.md can leave it out without a second encoder.
LICENSED = ("alpaca-libre-gpt35", "arenahard", "chatdoctor", "gpteacher", "ifbench", "mifeval", "licensed/", "own/")
FOLDS, ALL = 4, -1
ROWS, EPOCHS, TEACHER_HALF = 10_000, 3, 96
SPLICES, JOBS, DIRECTIONS = 700_000, 140, 16
STEPS, BATCH, RATE, REPEATS, SORTED = 7_000, 2048, 3e-3, 5, 24
MASK, START, END = 103, 101, 102
WHOLE_WORDS = slice(1996, 29612)
made_from = {}


def fold_of(row):
    return (int(row) * 0x9E3779B97F4A7C15 % 2**64 >> 40) % FOLDS


class Prompts:
    """Rows of the bench that may be learned from, by trace."""

    def __init__(self, bench):
        self.learned = {name: bench.split(name)[0] for name in sorted(bench.sets) if name.startswith(LICENSED)}
        self.rows = np.array(sorted({row for pairs in self.learned.values() for row, _ in pairs}))


def teacher_without(bench, prompts, fold):
    families = [minilm.family(name) for name in prompts.learned]
    groups = []
    for name, pairs in prompts.learned.items():
        seen = [pair for pair in pairs if fold_of(pair[0]) != fold]
        groups.append(seen if "/" in name else seen[: ROWS // families.count(minilm.family(name))])
    teacher = bench.train(groups, EPOCHS, seed=10 + fold).eval()
    print(f"a teacher without fold {fold}", flush=True)
    return teacher


def spliced(one, two, random):
    kind = random.random()
    if kind < 0.5 and len(one) > 4 and len(two) > 4:
        one = np.concatenate([one[: random.integers(2, len(one))], two[random.integers(0, len(two) - 2):]])
    elif kind < 0.8:
        one = np.concatenate([one, two])
    elif len(one) > 6:
        at = random.integers(0, len(one) // 2)
        one = one[at: at + random.integers(3, len(one))]
    if random.random() < 0.4:
        one, words = one.copy(), made_from["words"]
        swapped = (random.random(len(one)) < random.choice([0.05, 0.15, 0.3])) & words[one]
        one[swapped] = made_from["neighbours"][one[swapped], random.integers(0, 8, swapped.sum())]
    return small.cut(np.concatenate([[START], one, [END]]), TEACHER_HALF)


def splices(job):
    """Texts, each with the fold that its parts are of."""
    seed, count = job
    random, generated, folds, out = np.random.default_rng(seed), made_from["generated"], made_from["folds"], []
    pick = lambda texts: texts[random.integers(len(texts))][1:-1]
    for _ in range(count):
        if random.random() < 0.5:
            one, two, fold = pick(generated), pick(generated), ALL
            if random.random() < 0.3:
                two = np.concatenate([two, pick(generated)])
        else:
            fold = int(random.integers(FOLDS))
            one, two = pick(folds[fold]), pick(folds[fold])
        out.append((spliced(one, two, random), fold))
    return out


def pack(texts, half):
    ids, lengths = np.zeros((len(texts), 2 * half), np.int16), np.zeros(len(texts), np.int32)
    for row, text in enumerate(texts):
        text = small.cut(text, half)
        ids[row, : len(text)], lengths[row] = text, len(text)
    return torch.tensor(ids).cuda(), torch.tensor(lengths).cuda()


@torch.no_grad()
def judged(teacher, ids, lengths, rows, generated):
    """The teacher's guesses of texts, standardised over generated ones, and its pooled vectors."""
    guesses = torch.zeros(len(ids), device="cuda")
    pooled, seen = torch.zeros(len(ids), minilm.WIDTH, device="cuda", dtype=torch.bfloat16), []
    hook = teacher.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rows = rows[torch.argsort(lengths[rows])]
    for some in rows.split(1024):
        longest = int(lengths[some].max())
        mask = torch.arange(longest, device="cuda")[None] < lengths[some][:, None]
        with torch.autocast("cuda", torch.bfloat16):
            guesses[some] = -teacher(ids[some, :longest].long(), mask).float()
        pooled[some] = seen.pop().bfloat16()
    hook.remove()
    return (guesses - guesses[generated].mean()) / guesses[generated].std(), pooled


def directions(pooled, generated):
    pooled = pooled.float() - pooled[generated].float().mean(0)
    some = torch.randint(generated.start, generated.stop, (60_000,), device="cuda")
    main = pooled @ torch.pca_lowrank(pooled[some], 24, niter=4)[2][:, :DIRECTIONS]
    return main / main[generated, 0].std()


def train(student, ids, lengths, guesses, sides, unseen, real):
    """`real`: the first texts, prompts as they are, which come five times as often."""
    vectors = student.e.weight
    others = [value for name, value in student.named_parameters() if name != "e.weight"]
    optimiser = torch.optim.AdamW([{"params": others}, {"params": [vectors]}], lr=RATE, weight_decay=0.01, fused=True)
    places = torch.arange(ids.shape[1], device="cuda")[None]
    often = torch.cat([torch.arange(len(ids), device="cuda"), torch.arange(real, device="cuda").repeat(REPEATS - 1)])
    step = 0
    while True:
        batches = []
        for rows in often[torch.randperm(len(often), device="cuda")].split(BATCH * SORTED)[:-1]:
            batches += rows[torch.argsort(lengths[rows])].split(BATCH)
        for which in torch.randperm(len(batches)).tolist():
            if step == STEPS:
                return
            rows, done = batches[which], step / STEPS
            for group in optimiser.param_groups:
                group["lr"] = RATE * min(1, done / 0.05 + 0.02) * max(0.01, 1 - done)
            longest = int(lengths[rows[-1]])
            text = ids[rows, :longest].long()
            text = torch.where(torch.rand_like(text, dtype=torch.float) < 0.05, MASK, text)
            with torch.autocast("cuda", torch.bfloat16):
                said = student(text, places[:, :longest] < lengths[rows][:, None])
            said = said.float()
            side = ((said[:, 1:] - sides[rows]) ** 2 * unseen[rows].float()[:, None]).mean()
            loss = F.smooth_l1_loss(said[:, 0], guesses[rows], beta=0.5) + 0.3 * side
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(others, 1.0)
            optimiser.step()
            step += 1
            if step % 1000 == 0:
                print(f"step {step} of {STEPS}, loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def report(student, bench, learned):
    def tau(pairs):
        pairs = pairs[:2000]
        ids, lengths = pack([bench.prompts[row] for row, _ in pairs], student.half)
        mask = torch.arange(ids.shape[1], device="cuda")[None] < lengths[:, None]
        guesses = torch.cat([student(i.long(), m)[:, 0] for i, m in zip(ids.split(512), mask.split(512))])
        return minilm.tau_b(guesses.double().cpu().numpy(), np.array([length for _, length in pairs]))

    for name in sorted(bench.sets):
        held = bench.split(name)[1]
        print(name, f"held out {tau(held):.3f}" if held else "", f"learned {tau(learned[name]):.3f}" if name in learned else "", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared")
    parser.add_argument("tokenizer", help="tokenizer.json of MiniLM")
    parser.add_argument("out")
    parser.add_argument("--shapes", required=True)
    args = parser.parse_args()
    began = time.monotonic()
    bench = minilm.Bench(args.prepared)
    prompts = Prompts(bench)
    tokenizer = Tokenizer.from_file(args.tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    written = json.loads((Path(args.prepared) / "generated.json").read_text())
    generated = [np.array(encoding.ids) for encoding in tokenizer.encode_batch(written)]
    teachers = [teacher_without(bench, prompts, fold) for fold in range(FOLDS)]
    vectors = bench.weights["embeddings.word_embeddings.weight"].cuda()
    unit, words = F.normalize(vectors, dim=1), np.zeros(len(vectors), bool)
    words[WHOLE_WORDS] = True
    near = torch.cat([(some @ unit.T).topk(9).indices[:, 1:] for some in unit.split(2000)]).cpu().numpy()
    real, folds = [bench.prompts[row] for row in prompts.rows], [fold_of(row) for row in prompts.rows]
    by_fold = [[text for text, of in zip(real, folds) if of == fold] for fold in range(FOLDS)]
    made_from.update(generated=generated, folds=by_fold, neighbours=near, words=words)
    with multiprocessing.get_context("fork").Pool() as pool:
        made = [text for part in pool.map(splices, [(seed, SPLICES // JOBS) for seed in range(JOBS)], chunksize=1) for text in part]
    texts = real + generated + [text for text, _ in made]
    fold = torch.tensor(folds + [ALL] * len(generated) + [of for _, of in made]).cuda()
    between = slice(len(real), len(real) + len(generated))
    whole, guesses, sides = pack(texts, TEACHER_HALF), torch.zeros(FOLDS, len(texts), device="cuda"), []
    for number, teacher in enumerate(teachers):
        rows = torch.nonzero((fold == number) | (fold == ALL))[:, 0]
        guesses[number], pooled = judged(teacher, *whole, rows, between)
        if number < 2:
            sides.append(directions(pooled, between))
    guess = torch.where(fold == ALL, guesses.mean(0), guesses.gather(0, fold.clamp(min=0)[None])[0])
    print(f"{time.monotonic() - began:.0f} s: {len(texts)} texts judged, {len(real)} of them prompts", flush=True)
    torch.backends.cuda.matmul.allow_tf32 = True
    for shape in args.shapes.split(","):
        torch.manual_seed(1)
        student = small.Student(shape, 1 + 2 * DIRECTIONS).cuda()
        student.e.weight.data = vectors @ torch.pca_lowrank(vectors, small.WIDTH + 32, niter=6)[2][:, : small.WIDTH]
        student.e.weight.data /= student.e.weight.data.std()
        print(f"{time.monotonic() - began:.0f} s: a student {shape}", flush=True)
        train(student, *pack(texts, student.half), guess, torch.cat(sides, 1), fold == ALL, len(real))
        report(student.eval(), bench, prompts.learned)
        small.save(student, Path(args.out) / f"{shape.replace(':', '-')}.pkl")


if __name__ == "__main__":
    main()
