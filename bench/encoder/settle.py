"""Makes the encoder forget the answers that it knows by heart. Runs on a CPU (seven minutes on two cores).

usage: python3 settle.py PREPARED_DIR IN.pkl OUT.pkl [--without FAMILY] [--seconds S]

The teachers of teach.py were fine-tuned on the prompts that they then judged, and the student learned their judgement: on those
prompts its guess follows the true length more closely than on any other. A ranker that is trained on such prompts would believe it
too much. So from each guess on a learned prompt that part is taken which follows the label, until guess and label of a group of
traces correlate as they do on its held-out prompts (one number a group comes from held-out labels); where nothing is held out, as
much as in the mean of the others. The student is fine-tuned on these targets, and on its own former guesses of spliced texts.
Prints tau-b on learned and held-out prompts before and after; only the guess is kept.
"""
import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import minilm
import student as small

RATE, BATCH = 1.5e-3, 384
START, END = 101, 102


def group_of(name):
    return name if name.startswith(("own/", "gpteacher")) else minilm.family(name)


def batch(texts):
    longest = max(len(text) for text in texts)
    ids, mask = np.zeros((len(texts), longest), np.int64), np.zeros((len(texts), longest), bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, True
    return torch.tensor(ids), torch.tensor(mask)


@torch.no_grad()
def guesses(student, prompts):
    out = np.zeros(len(prompts))
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for at in range(0, len(order), 512):
        rows = order[at: at + 512]
        out[rows] = student(*batch([prompts[row] for row in rows]))[:, 0].numpy()
    return out


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


def standardised(values):
    return (values - values.mean()) / values.std()


def settled(guess, label, wanted):
    """The guess without so much of the label that the two correlate as wanted; mean and deviation stay."""
    low, high, of_guess, of_label = 0.0, 0.99, standardised(guess), standardised(label)
    if correlation(guess, label) <= wanted:
        return guess
    for _ in range(50):
        middle = (low + high) / 2
        if correlation(of_guess - middle * of_label, of_label) > wanted:
            low = middle
        else:
            high = middle
    return standardised(of_guess - low * of_label) * guess.std() + guess.mean()


def targets_of(sets, names, guess):
    """Learned prompt -> the guess that the student should give."""
    groups, out, shares = {}, {}, []
    for name in names:
        groups.setdefault(group_of(name), []).append(name)
    # Those of our own come last: nothing of them is held out.
    for group, members in sorted(groups.items(), key=lambda item: item[0].startswith("own/")):
        labels, held = {}, set()
        for name in members:
            lengths = standardised(np.log1p([length for _, length, _ in sets[name]]))
            for (row, _, out_of_it), label in zip(sets[name], lengths):
                labels.setdefault(row, []).append(label)
                held |= {row} if out_of_it else set()
        rows = np.array([row for row in labels if row not in held])
        mean = lambda rows: np.array([np.mean(labels[row]) for row in rows])
        inside = correlation(guess[rows], mean(rows))
        if held:
            wanted = correlation(guess[sorted(held)], mean(sorted(held)))
            shares.append(wanted / inside)
        else:
            wanted = inside * np.mean(shares)
        print(f"{group}: {len(rows)} prompts, correlation {inside:.3f} learned, {wanted:.3f} wanted", flush=True)
        out.update(zip(rows.tolist(), settled(guess[rows], mean(rows), wanted)))
    return out


def splice(prompts, rows, random):
    one, two = (prompts[rows[random.integers(len(rows))]][1:-1] for _ in range(2))
    if len(one) > 3 and len(two) > 3:
        one = np.concatenate([one[: random.integers(1, len(one))], two[random.integers(0, len(two) - 1):]])
    return small.cut(np.concatenate([[START], one, [END]]))


def tune(student, former, prompts, wanted, seconds):
    rows, random = np.array(sorted(wanted)), np.random.default_rng(3)
    targets, lengths = torch.zeros(len(prompts)), np.array([len(prompt) for prompt in prompts])
    targets[rows] = torch.tensor([wanted[row] for row in rows], dtype=torch.float)
    optimiser, began = torch.optim.Adam(student.parameters(), lr=RATE), time.monotonic()
    while True:
        order = random.permutation(rows)
        parts = np.array_split(order, max(1, len(order) // (BATCH * 12)))
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
        batches, total = [order[at: at + BATCH] for at in range(0, len(order), BATCH)], 0.0
        random.shuffle(batches)
        for some in batches:
            done = (time.monotonic() - began) / seconds
            if done >= 1:
                return
            for group in optimiser.param_groups:
                group["lr"] = RATE * min(1, done / 0.05 + 0.05) * max(0.02, 1 - done)
            loss = F.smooth_l1_loss(student(*batch([prompts[row] for row in some]))[:, 0], targets[some], beta=0.3)
            total += loss.item()
            texts = batch([splice(prompts, rows, random) for _ in range(BATCH // 3)])
            with torch.no_grad():
                before = former(*texts)[:, 0]
            loss = loss + 0.5 * F.smooth_l1_loss(student(*texts)[:, 0], before, beta=0.3)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
        print(f"{time.monotonic() - began:.0f} s, loss {total / len(batches):.4f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared")
    parser.add_argument("student")
    parser.add_argument("out")
    parser.add_argument("--without", help="the family that teach.py left out")
    parser.add_argument("--seconds", type=float, default=420)
    args = parser.parse_args()
    bench = minilm.Bench(args.prepared)
    prompts = [small.cut(prompt) for prompt in bench.prompts]
    student, former = small.load(args.student), small.load(args.student).eval()
    before = guesses(former, prompts)
    wanted = targets_of(bench.sets, small.learned(bench.sets, args.without), before)
    tune(student, former, prompts, wanted, args.seconds)
    after = guesses(student.eval(), prompts)
    for name, rows in bench.sets.items():
        for label, out_of_it in (("learned", False), ("held out", True)):
            some = [(row, length) for row, length, held in rows if held is out_of_it][:3000]
            if some:
                tau = lambda guess: minilm.tau_b(guess[[row for row, _ in some]], np.array([length for _, length in some]))
                print(f"{name} {label}: {tau(before):.3f} -> {tau(after):.3f}")
    small.save(student, args.out, outputs=1)


if __name__ == "__main__":
    main()
