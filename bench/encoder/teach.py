"""Teaches the small encoder what fine-tuned SmolLM2s say. Needs torch, tokenizers, gguf and a GPU with 60 GB.

usage: python3 teach.py PREPARED_DIR MODEL.gguf TOKENIZER.json OUT_DIR --shapes cca:64,ccca:64     (PREPARED_DIR: of prepare.py and
generate.py; TOKENIZER.json: MiniLM's)

Writes a student of each shape, as `cca-64.pkl`. OUT_DIR keeps the teachers and what they judged: what is there is not made again, so
the steps can be run one by one (--until teachers|judged). On an H100: teachers 125 s, texts 65 s, judging 330 s, four students 400 s.

Prompts that may be learned from are dealt out to four folds. Four SmolLM2s are fine-tuned with ListMLE, each on three of them, and a
prompt is judged by the one that has not seen it: so the guess on a learned prompt is as good as on any other, and a ranker that is
trained on it later does not believe it too much. Texts that no one answered (generate.py's, and splices of them) are judged by two
of the four, splices of prompts of one fold by the teacher without that fold. The student learns the guess, and as a side task, where
no teacher has seen a part of the text, 16 directions of two teachers' pooled vectors.
Prints tau-b of the guesses on every trace: of each teacher on held-out prompts, of a student on those and on learned ones.
"""
import argparse
import json
import lzma
import multiprocessing
import os
import random as plain_random
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gguf import GGUFReader
from tokenizers import Tokenizer
from torch import nn

import minilm
import smollm
import student as small

# What may be learned from for weights that ship: traces with an MIT or Apache-2.0 licence, and prompts of the project's own. mmlupro
# could be, and is left out: so docs/ranker.md can leave it out without a second encoder.
LICENSED = ("alpaca-libre-gpt35", "arenahard", "chatdoctor", "gpteacher", "ifbench", "mifeval", "licensed/", "own/")
FOLDS, ALL, JUDGES = 4, -1, 2
# Of a text a teacher reads so many tokens from either end; of a prompt a splice is made from so many words of either end.
TEACHER_HALF, SPLICED_HALF = 96, 96
ROWS, EPOCHS, TEACHER_RATE, HEAD_RATE, DEEPER, TOKENS = 10_000, 2, 3e-4, 1e-3, 0.95, 9_000
JUDGED_TOKENS, SPLICES, JOBS, DIRECTIONS = 60_000, 1_400_000, 140, 16
BATCH, RATE, REPEATS, SORTED = 2048, 3e-3, 2, 24
MASKED, MOVED_RATE, MOVED_DECAY = 0.1, 3e-4, 0.3
MASK = 103
WHOLE_WORDS = slice(1996, 29612)
# A word with what follows it; a character where a language writes none between words.
WORDS = re.compile(r"[\u3040-\u9fff\uac00-\ud7af]|[^\W\u3040-\u9fff\uac00-\ud7af]+\s*|[^\w\s]\s*|\s+")
made_from = {}


def fold_of(row):
    return (int(row) * 0x9E3779B97F4A7C15 % 2**64 >> 40) % FOLDS


class Prompts:
    """The prompts of the bench, and which of them may be learned from, by trace."""

    def __init__(self, folder):
        self.bench = minilm.Bench(folder)
        self.texts = json.load(lzma.open(Path(folder) / "texts.xz", "rt"))
        self.learned = {name: self.bench.split(name)[0] for name in sorted(self.bench.sets) if name.startswith(LICENSED)}
        self.rows = np.array(sorted({row for pairs in self.learned.values() for row, _ in pairs}))

    def groups(self, fold):
        """One list of (prompt, length) a trace, without the prompts of a fold."""
        families = [minilm.family(name) for name in self.learned]
        groups = []
        for name, pairs in self.learned.items():
            seen = [pair for pair in pairs if fold_of(pair[0]) != fold]
            groups.append(seen if "/" in name else seen[: ROWS // families.count(minilm.family(name))])
        return groups


class Reader:
    """Texts -> token ids of chats, as arrays of 16 bits."""

    def __init__(self, gguf):
        self.tokenizer = smollm.tokenizer_of(GGUFReader(gguf))
        self.before, self.after = (np.array(self.tokenizer.encode(part).ids, np.uint16) for part in smollm.TEMPLATE)

    def __call__(self, texts):
        cut = lambda encoding: small.cut(np.array(encoding.ids, np.uint16), TEACHER_HALF)
        return [np.concatenate([self.before, cut(encoding), self.after]) for encoding in self.tokenizer.encode_batch_fast(texts)]


def teach(gguf, prompts, tokens, fold):
    torch.manual_seed(10 + fold)
    rng = plain_random.Random(10 + fold)
    model = smollm.Ranker(gguf).cuda().train()
    layers = model.facts.layers
    sets = [{"params": model.parameters_of(layer), "lr": TEACHER_RATE * DEEPER ** (layers - 1 - layer)} for layer in range(-1, layers)]
    sets.append({"params": list(model.head.parameters()), "lr": HEAD_RATE})
    optimiser = torch.optim.AdamW(sets, weight_decay=0.01, fused=True)
    groups = prompts.groups(fold)
    steps = EPOCHS * -(-sum(len(rows) // minilm.LIST for rows in groups) // minilm.LISTS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1, (step + 1) / steps / 0.06) * max(0.02, 1 - step / steps))
    for _ in range(EPOCHS):
        lists = []
        for rows in groups:
            rows = list(rows)
            rng.shuffle(rows)
            lists += [rows[at: at + minilm.LIST] for at in range(0, len(rows) - minilm.LIST + 1, minilm.LIST)]
        rng.shuffle(lists)
        for at in range(0, len(lists), minilm.LISTS):
            some = lists[at: at + minilm.LISTS]
            optimiser.zero_grad(set_to_none=True)
            whole = sum(len(tokens[row]) for rows in some for row, _ in rows) < TOKENS
            for few in [some] if whole else [some[: minilm.LISTS // 2], some[minilm.LISTS // 2:]]:
                if few:
                    lengths = torch.tensor([[float(np.log1p(length)) for _, length in rows] for rows in few], device="cuda")
                    batch = smollm.Batch([tokens[row] for rows in few for row, _ in rows])
                    with torch.autocast("cuda", torch.bfloat16):
                        scores = model(batch).view(len(few), minilm.LIST)
                    (minilm.listmle(scores, lengths) * len(few) / len(some)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def judged(teacher, tokens):
    """Guesses of how long an answer is, and the pooled vectors behind them; the teacher is left in 16 bits."""
    teacher.bfloat16().head.float()
    lengths = np.array([len(text) for text in tokens])
    guesses, pooled = np.zeros(len(tokens), np.float32), torch.zeros(len(tokens), teacher.facts.width, dtype=torch.bfloat16)
    order = np.argsort(lengths, kind="stable")
    until = np.searchsorted(np.cumsum(lengths[order]), np.arange(JUDGED_TOKENS, lengths.sum(), JUDGED_TOKENS))
    for rows in np.split(order, until):
        if len(rows):
            some = teacher.pooled(smollm.Batch([tokens[row] for row in rows]))
            guesses[rows], pooled[rows] = -teacher.head(some)[:, 0].float().cpu().numpy(), some.bfloat16().cpu()
    return guesses, pooled


def make_teacher(fold, args):
    prompts, reader, began = Prompts(args.prepared), Reader(args.model), time.monotonic()
    tokens = reader(prompts.texts)
    teacher = teach(args.model, prompts, tokens, fold)
    held = {name: prompts.bench.split(name)[1][:2000] for name in sorted(prompts.bench.sets)}
    rows = sorted({row for pairs in held.values() for row, _ in pairs})
    guess = dict(zip(rows, judged(teacher, [tokens[row] for row in rows])[0]))
    tau = lambda pairs: minilm.tau_b(np.array([guess[row] for row, _ in pairs], float), np.array([length for _, length in pairs]))
    said = " ".join(f"{name}:{tau(pairs):.3f}" for name, pairs in held.items() if pairs)
    print(f"teacher without fold {fold}, {time.monotonic() - began:.0f} s: {said}", flush=True)
    save(Path(args.out) / f"teacher-{fold}.pt", lambda path: torch.save(teacher.state_dict(), path))


def save(path, write):
    write(f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def spliced(one, two, random):
    kind = random.random()
    if kind < 0.5 and len(one) > 2 and len(two) > 2:
        one = one[: random.integers(1, len(one))] + two[random.integers(0, len(two) - 1):]
    elif kind < 0.8:
        one = one + two
    elif len(one) > 4:
        at = random.integers(0, len(one) // 2)
        one = one[at: at + random.integers(2, len(one))]
    if random.random() < 0.4:
        share, like = random.choice([0.05, 0.15, 0.3]), made_from["like"]
        one = [swapped(word, like, random) if random.random() < share else word for word in one]
    return "".join(one)


def swapped(word, like, random):
    """A word of a like meaning, written as the one whose place it takes."""
    bare = word.rstrip()
    others = like.get(bare.lower())
    if others is None:
        return word
    other = others[random.integers(len(others))]
    return (other.capitalize() if bare[0].isupper() else other) + word[len(bare):]


def splices(job):
    """Texts, each with the fold that its parts are of."""
    seed, count = job
    random, generated, folds, out = np.random.default_rng(seed), made_from["generated"], made_from["folds"], []
    words = lambda text: small.cut(WORDS.findall(text), SPLICED_HALF)
    pick = lambda texts: words(texts[random.integers(len(texts))])
    for _ in range(count):
        if random.random() < 0.5:
            one, two, fold = pick(generated), pick(generated), ALL
            if random.random() < 0.3:
                two = two + pick(generated)
        else:
            fold = int(random.integers(FOLDS))
            one, two = pick(folds[fold]), pick(folds[fold])
        out.append((spliced(one, two, random), fold))
    return out


def all_texts(prompts, tokenizer, args):
    """Prompts that may be learned from, generated texts and splices, and of each the fold; of the second a slice."""
    generated = json.loads((Path(args.prepared) / "generated.json").read_text())
    vectors = F.normalize(prompts.bench.weights["embeddings.word_embeddings.weight"][WHOLE_WORDS], dim=1)
    names = [tokenizer.id_to_token(piece) for piece in range(WHOLE_WORDS.start, WHOLE_WORDS.stop)]
    near = torch.cat([(some @ vectors.T).topk(9).indices[:, 1:] for some in vectors.split(2000)]).tolist()
    real, folds = [prompts.texts[row] for row in prompts.rows], [fold_of(row) for row in prompts.rows]
    like = {name: [names[other] for other in others] for name, others in zip(names, near)}
    made_from.update(generated=generated, folds=[[text for text, of in zip(real, folds) if of == fold] for fold in range(FOLDS)], like=like)
    with multiprocessing.get_context("fork").Pool() as pool:
        made = [text for part in pool.map(splices, [(seed, SPLICES // JOBS) for seed in range(JOBS)], chunksize=1) for text in part]
    made = [(text, fold) for text, fold in made if text.strip()]
    fold = np.array(folds + [ALL] * len(generated) + [of for _, of in made])
    return real + generated + [text for text, _ in made], fold, slice(len(real), len(real) + len(generated))


def flat(arrays):
    return np.concatenate(arrays), np.cumsum([0] + [len(array) for array in arrays])


def judge(fold, args):
    began = time.monotonic()
    kept = np.load(Path(args.out) / "texts.npz")
    tokens, offsets, of, (first, last) = (kept[name] for name in ("tokens", "offsets", "fold", "generated"))
    teacher = smollm.Ranker(args.model)
    teacher.load_state_dict(torch.load(Path(args.out) / f"teacher-{fold}.pt"))
    rows = np.nonzero((of == fold) | (of == ALL) & ((np.arange(len(of)) - fold) % FOLDS < JUDGES))[0]
    guesses, pooled = judged(teacher.cuda().eval(), [tokens[offsets[row]: offsets[row + 1]] for row in rows])
    between = (first <= rows) & (rows < last)
    guesses = (guesses - guesses[between].mean()) / guesses[between].std()
    out = {"rows": rows, "guesses": guesses}
    if fold < 2:
        pooled, between = pooled.cuda(), torch.tensor(between).cuda()
        mean = pooled[between].float().mean(0)
        some = pooled[between][torch.randint(int(between.sum()), (60_000,), device="cuda")].float() - mean
        axes = torch.pca_lowrank(some, 24, niter=4)[2][:, :DIRECTIONS]
        main = torch.cat([(part.float() - mean) @ axes for part in pooled.split(100_000)])
        out["side"] = (main / main[between, 0].std()).half().cpu().numpy()
    print(f"teacher without fold {fold} judged {len(rows)} texts in {time.monotonic() - began:.0f} s", flush=True)
    save(Path(args.out) / f"judged-{fold}.npz", lambda path: np.savez(open(path, "wb"), **out))


def pack(texts, half):
    ids, lengths = np.zeros((len(texts), 2 * half), np.int16), np.zeros(len(texts), np.int32)
    for row, text in enumerate(texts):
        text = small.cut(text, half)
        ids[row, : len(text)], lengths[row] = text, len(text)
    return torch.tensor(ids).cuda(), torch.tensor(lengths).cuda()


def train(student, steps, ids, lengths, guesses, sides, known, real):
    """`real`: the first texts, prompts as they are, which come twice as often. `known`: which of the sides were judged."""
    moved, others = student.e.moved, [value for name, value in student.named_parameters() if name != "e.moved"]
    sets = [{"params": others, "lr": RATE, "weight_decay": 0.01}, {"params": [moved], "lr": MOVED_RATE, "weight_decay": MOVED_DECAY}]
    optimiser = torch.optim.AdamW(sets, fused=True)
    share = lambda step: min(1, step / steps / 0.05 + 0.02) * max(0.01, 1 - step / steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
    places = torch.arange(ids.shape[1], device="cuda")[None]
    often = torch.cat([torch.arange(len(ids), device="cuda"), torch.arange(real, device="cuda").repeat(REPEATS - 1)])
    step = 0
    while True:
        batches = []
        for rows in often[torch.randperm(len(often), device="cuda")].split(BATCH * SORTED)[:-1]:
            batches += rows[torch.argsort(lengths[rows])].split(BATCH)
        for which in torch.randperm(len(batches)).tolist():
            if step == steps:
                return
            rows = batches[which]
            longest = int(lengths[rows[-1]])
            text = ids[rows, :longest].long()
            text = torch.where(torch.rand_like(text, dtype=torch.float) < MASKED, MASK, text)
            with torch.autocast("cuda", torch.bfloat16):
                said = student(text, places[:, :longest] < lengths[rows][:, None])
            said = said.float()
            side = ((said[:, 1:] - sides[rows]) ** 2 * known[rows]).mean()
            loss = F.smooth_l1_loss(said[:, 0], guesses[rows], beta=0.5) + 0.3 * side
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(others, 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            if step % 1000 == 0:
                print(f"{student.shape} step {step} of {steps}, loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def report(student, prompts):
    def tau(pairs):
        pairs = pairs[:2000]
        ids, lengths = pack([prompts.bench.prompts[row] for row, _ in pairs], student.half)
        mask = torch.arange(ids.shape[1], device="cuda")[None] < lengths[:, None]
        guesses = torch.cat([student(i.long(), m)[:, 0] for i, m in zip(ids.split(512), mask.split(512))])
        return minilm.tau_b(guesses.double().cpu().numpy(), np.array([length for _, length in pairs]))

    lines = [student.shape]
    for name in sorted(prompts.bench.sets):
        held, learned = prompts.bench.split(name)[1], prompts.learned.get(name, [])
        lines.append(f"{name}" + (f" held out {tau(held):.3f}" if held else "") + (f" learned {tau(learned):.3f}" if learned else ""))
    print("\n".join(lines), flush=True)


def make_student(number, args):
    shape, began = args.shapes.split(",")[number], time.monotonic()
    prompts, kept = Prompts(args.prepared), np.load(Path(args.out) / "texts.npz")
    pieces, places, of = (kept[name] for name in ("pieces", "places", "fold"))
    total, count, sides, known = np.zeros(len(of), np.float32), np.zeros(len(of), np.float32), [], []
    for fold in range(FOLDS):
        judged = np.load(Path(args.out) / f"judged-{fold}.npz")
        rows = judged["rows"]
        total[rows] += judged["guesses"]
        count[rows] += 1
        if "side" in judged:
            sides.append(np.zeros((len(of), DIRECTIONS), np.float16))
            known.append(np.zeros((len(of), DIRECTIONS), bool))
            sides[-1][rows], known[-1][rows] = judged["side"], of[rows, None] == ALL
    put = lambda array: torch.tensor(array).cuda()
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(1)
    vectors = prompts.bench.weights["embeddings.word_embeddings.weight"].cuda()
    student = small.Student(shape, 1 + 2 * DIRECTIONS, vectors).cuda()
    ids = pack([pieces[places[row]: places[row + 1]] for row in range(len(of))], student.half)
    sides, known = (put(np.concatenate(arrays, 1)) for arrays in (sides, known))
    train(student, args.steps, *ids, put(total / count), sides, known, len(prompts.rows))
    print(f"a student {shape} in {time.monotonic() - began:.0f} s", flush=True)
    report(student.eval(), prompts)
    save(Path(args.out) / f"{shape.replace(':', '-')}.pkl", lambda path: small.save(student, path))


def at_once(work, numbers, args):
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=work, args=(number, args)) for number in numbers]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        raise SystemExit(f"{work.__name__} failed, see above")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared")
    parser.add_argument("model", help="SmolLM2-135M-Instruct as a GGUF file")
    parser.add_argument("tokenizer", help="tokenizer.json of MiniLM")
    parser.add_argument("out")
    parser.add_argument("--shapes", required=True)
    parser.add_argument("--steps", type=int, default=9_000, help="of a student (default: 9000)")
    parser.add_argument("--until", choices=["teachers", "judged", "students"], default="students")
    args = parser.parse_args()
    began, out = time.monotonic(), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    missing = lambda name: [fold for fold in range(FOLDS) if not (out / name.format(fold)).exists()]
    at_once(make_teacher, missing("teacher-{}.pt"), args)
    if args.until == "teachers":
        return
    if not (out / "texts.npz").exists():
        tokenizer = Tokenizer.from_file(args.tokenizer)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        prompts = Prompts(args.prepared)
        texts, fold, generated = all_texts(prompts, tokenizer, args)
        tokens, offsets = flat(Reader(args.model)(texts))
        pieces, places = flat([small.cut(np.array(encoding.ids, np.int16), TEACHER_HALF) for encoding in tokenizer.encode_batch_fast(texts)])
        arrays = {"tokens": tokens, "offsets": offsets, "pieces": pieces, "places": places, "fold": fold, "generated": [generated.start, generated.stop]}
        save(out / "texts.npz", lambda path: np.savez(open(path, "wb"), **arrays))
        print(f"{time.monotonic() - began:.0f} s: {len(texts)} texts, {len(prompts.rows)} of them prompts", flush=True)
    at_once(judge, missing("judged-{}.npz"), args)
    print(f"{time.monotonic() - began:.0f} s: judged", flush=True)
    if args.until == "students":
        at_once(make_student, range(len(args.shapes.split(","))), args)


if __name__ == "__main__":
    main()
