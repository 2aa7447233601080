"""How well the ranker orders, on traces of many models: writes the tables of docs/ranker.md.

usage: python3 scripts/ranker.py --outrank target/release/outrank --data DIR --out docs/ranker.md     (needs scikit-learn)

DIR/length has *.jsonl.gz traces. Everything is split by prompt (a fifth held out by the rule of `outrank train`), and a
ranker to start from has learned from the training part of other families of traces only. Nothing of the data gets into the
document.
"""
import argparse
import gzip
import hashlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, hstack
from scipy.stats import kendalltau
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import Ridge

OWN = Path(__file__).parent.parent / "traces" / "estimated-lengths.jsonl.gz"
# Traces that share prompts, or whose prompts come from each other: none is in the prior of another.
FAMILIES = {"alpaca": "alpaca", "halueval": "alpaca", "mmlupro": "mmlupro", "mixed": "mixed"}
# Shares prompts with many: in no prior.
IN_NO_PRIOR = "mixed"
# Of LEFT_OUT what the shipped ranker has learned from.
SHIPPED = ["mmlupro"]
# Rows that a family brings to a prior, so that no big one drowns the others.
PRIOR_ROWS = 3000
FOLDS = 5
SIZES = [30, 100, 300, 1000, 3000, 10_000]
CURVES = ["alpaca-davinci003", "mmlupro-llama31-8b", "instructionwild-llama32-3b", "arenahard-gpt-4-0314"]
LEFT_OUT = ["flask-gpt4", "flask-llama2-chat-13b", "mmlupro-llama31-8b", "instructionwild-llama32-3b"]
ADAPTING = ["mmlupro-llama31-8b", "mmlupro-qwen15-7b", "mmlupro-gemini15-flash", "mmlupro-mistral-7b",
            "instructionwild-llama32-3b", "flask-gpt4"]
SEEDS = [1]
# Random draws of so few learned prompts, with a prior and without.
DRAWN, DRAWS = [30, 100, 300, 1000], 8
POINTS = [0, 100, 300, 1000, 3000]
COMPARED = ["instructionwild-llama32-3b", "flask-gpt4", "alpaca-libre-gpt35", "mixed-smollm2-135m-t1"]
OBJECTIVES = ["listmle", "pairwise", "regression"]
CLASSES = ["percentile:10", "width:10", "width:100", "width:200"]
DRIFTING = ["flask-gpt4", "instructionwild-llama32-3b"]
PROFILE = "h200-llama3-8b"
ENCODER = Path(__file__).parent.parent / "results" / "encoder" / "minilm.json"


def family(name):
    stem = name.split("-")[0]
    if name.startswith("gpteacher"):
        return "gpteacher"
    return FAMILIES.get(stem, stem)


def fold_of(row):
    key = re.sub(r"\s+", " ", row["prompt"].strip().lower())[:200]
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % FOLDS


def held_out(row):
    return fold_of(row) == 0


def by_hash(rows):
    """Rows in an order that depends on nothing but their prompts."""
    return sorted(rows, key=lambda row: hashlib.sha256(("order" + row["prompt"]).encode()).hexdigest())


def length(row):
    tokens = row["output_tokens"]
    return float(np.exp(np.mean(np.log(np.maximum(tokens, 1))))) if isinstance(tokens, list) else tokens


HASHED = HashingVectorizer(n_features=2**18, ngram_range=(1, 2), alternate_sign=False)


def features(rows):
    surface = [[np.log1p(r["prompt_tokens"]), min(r["prompt"].count("\n"), 50) / 10, "?" in r["prompt"], "```" in r["prompt"]]
               for r in rows]
    return hstack([HASHED.transform([r["prompt"] for r in rows]), csr_matrix(np.array(surface, float) * 0.3)]).tocsr()


def floor(train, test):
    """tau-b of ridge regression on hashed 1-2-grams and four surface features."""
    lengths = np.log1p([length(row) for row in train])
    predicted = Ridge(alpha=1.0).fit(features(train), lengths).predict(features(test))
    return kendalltau(predicted, np.log1p([length(row) for row in test]))[0]


class Results:
    """What has been computed, kept in a file as it comes, so that a run that was cut off goes on where it stopped."""

    def __init__(self, path):
        self.path, self.lock, self.known = path, threading.Lock(), {}
        if path and Path(path).is_file():
            self.known = dict(json.loads(line) for line in Path(path).read_text().splitlines())

    def get(self, name, compute, *args):
        key = json.dumps([name, *args])
        if key not in self.known:
            value = compute(*args)
            with self.lock:
                self.known[key] = value
                if self.path:
                    with open(self.path, "a") as file:
                        file.write(json.dumps([key, value]) + "\n")
        return self.known[key]


class Bench:
    def __init__(self, outrank, data, folder):
        self.outrank, self.data, self.folder = outrank, Path(data) / "length", Path(folder)
        self.folder.mkdir(exist_ok=True)
        self.names = sorted(path.name.removesuffix(".jsonl.gz") for path in self.data.glob("*.jsonl.gz"))
        self.rows = {}
        for name in self.names:
            with gzip.open(self.data / f"{name}.jsonl.gz", "rt") as file:
                self.rows[name] = [json.loads(line) for line in file]

    def split(self, name):
        test = [held_out(row) for row in self.rows[name]]
        pick = lambda wanted: [row for row, out in zip(self.rows[name], test) if out is wanted]
        return by_hash(pick(False)), pick(True)

    def write(self, name, rows):
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def run(self, *command):
        done = subprocess.run([self.outrank, *map(str, command), "--json"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
        return json.loads(done.stdout)

    def prior(self, left_out):
        """A ranker of our own prompts with estimated lengths and of the training part of all families but one; its file. What
        is chosen by cross-validation is chosen for families left out, as for the shipped ranker."""
        traces = ["--trace", OWN, "--trace-family", "own", "--trace-weight", 2]
        for name in self.names:
            if family(name) in (left_out, IN_NO_PRIOR):
                continue
            siblings = sum(family(other) == family(name) for other in self.names)
            rows = self.write(f"{left_out}--{name}", self.split(name)[0][:PRIOR_ROWS // siblings])
            traces += ["--trace", rows, "--trace-family", family(name), "--trace-weight", 1]
        out = self.folder / f"without-{left_out}.outrank"
        self.run("train", "--all", "--prior", "none", "--out", out, *traces)
        return out

    def train(self, name, prior, size=None, draw=None):
        """tau-b of a ranker that learned from the first prompts, or from a random draw of so many; and all that `eval` says of it."""
        train, test = self.split(name)
        if draw is not None:
            random.Random(f"{name} {size} {draw}").shuffle(train)
        trace = self.write(f"{name}--{size}-{draw}-{Path(str(prior)).stem}", train[:size] + test)
        out = self.folder / f"{trace.stem}.outrank"
        tau = self.run("train", "--trace", trace, "--prior", prior, "--out", out)["held_out"]["tau_b"]
        return tau, self.run("eval", "--held-out", "--trace", trace, "--ranker", out)["files"][0]

    def folds(self, name, prior):
        """Means over all fifths of the prompts, each held out in turn: tau-b of the prior, the shipped ranker, and one trained on the rest."""
        found = []
        for fold in range(FOLDS):
            part = lambda wanted: [row for row in by_hash(self.rows[name]) if (fold_of(row) == fold) is wanted]
            learned, left = self.write(f"{name}--without-{fold}", part(False)), self.write(f"{name}--fold-{fold}", part(True))
            own = self.folder / f"{learned.stem}.outrank"
            self.run("train", "--all", "--trace", learned, "--prior", prior, "--out", own)
            tau = lambda *ranker: self.run("eval", "--trace", left, *ranker)["files"][0]["tau_b"]
            found.append([tau("--ranker", prior), tau(), tau("--ranker", own)])
        return [statistics.mean(values) for values in zip(*found)]

    def scored(self, name, how):
        """tau-b, and mean s/token of a burst over that of fcfs when served shortest first by these scores: all as bare numbers, so
        that a ranker has no better spread to offer than classes have. Last the tau-b of the scores cut into ten classes of one size:
        pairs in one class are ties, which tau-b leaves out of its denominator, so that it compares with classes and not with an order."""
        stem = f"{name}--{how.replace(':', '-')}"
        trace, scored = self.data / f"{name}.jsonl.gz", self.folder / f"{stem}.scored.jsonl"
        if how in OBJECTIVES:
            ranker = self.folder / f"{stem}.outrank"
            self.run("train", "--trace", trace, "--prior", "none", "--objective", how, "--out", ranker)
            tau = self.run("trace", "score", trace, "--out", scored, "--held-out", "--ranker", ranker)["tau_b"]
        else:
            tau = self.run("trace", "score", trace, "--out", scored, "--held-out", "--classes", how)["tau_b"]
        runs = self.run("simulate", "--trace", scored, "--scores", "trace", "--arrivals", "burst:2000", "--profile", PROFILE, "--seeds", 5,
                        "--policies", "fcfs,sjf,oracle-sjf", "--no-monitor")["runs"]
        mean = lambda policy: statistics.mean(run["metrics"]["s_per_token"]["mean"] for run in runs if run["policy"] == policy)
        rows = [json.loads(line) for line in scored.read_text().splitlines()]
        scores = np.array([row["score"] for row in rows])
        classes = np.searchsorted(np.quantile(scores, np.arange(1, 10) / 10), scores)
        in_ten = kendalltau(classes, [length(row) for row in rows])[0]
        return tau, mean("sjf") / mean("fcfs"), mean("oracle-sjf") / mean("fcfs"), in_ten

    def drift(self, name):
        """An hour of load in which the ranker is upside down for a third, and the same hour without: the runs of outrank, and fcfs."""
        ranker = self.folder / f"{name}--drift.outrank"
        trace = self.data / f"{name}.jsonl.gz"
        self.run("train", "--trace", trace, "--prior", "none", "--out", ranker)
        found = {}
        for scores in ("ranker", "flipped:1200:2400"):
            runs = self.run("simulate", "--trace", trace, "--held-out", "--ranker", ranker, "--scores", scores, "--profile", PROFILE,
                            "--arrivals", "load:0.95", "--duration-s", 3600, "--policies", "fcfs,outrank")["runs"]
            found[scores] = {run["policy"]: {key: run[key] for key in ("metrics", "trust_changes")} for run in runs}
        return found


def three(value):
    return "-" if value is None else f"{value:.3f}"


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)])


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--outrank", required=True)
    args.add_argument("--data", required=True)
    args.add_argument("--out", required=True)
    args.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 3))
    args.add_argument("--results", help="file that keeps what was computed: a run that was cut off goes on there")
    args = args.parse_args()
    results = Results(args.results)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        bench = Bench(args.outrank, args.data, folder)
        priors = {}
        lock = {family(name): threading.Lock() for name in bench.names}

        def prior_of(name):
            with lock[family(name)]:
                if family(name) not in priors:
                    priors[family(name)] = bench.prior(family(name))
            return priors[family(name)]

        held_out_of = lambda name, *more: ("eval", "--held-out", "--trace", bench.data / f"{name}.jsonl.gz", "--ranker", prior_of(name), *more)
        work = {
            "alone": lambda name: bench.train(name, "none"),
            "helped": lambda name: bench.train(name, prior_of(name)),
            "curve": lambda name, size, prior: bench.train(name, "none" if prior == "none" else prior_of(name), size),
            "drawn": lambda name, size, draw, prior: bench.train(name, "none" if prior == "none" else prior_of(name), size, draw)[0],
            "folds": lambda name: bench.folds(name, prior_of(name)),
            "cold": lambda name: bench.run(*held_out_of(name)),
            "shipped": lambda name: bench.run("eval", "--held-out", "--trace", bench.data / f"{name}.jsonl.gz"),
            "adapting": lambda name, seed: bench.run(*held_out_of(name, "--adaptation", "--seed", seed)),
            "scored": lambda name, how: bench.scored(name, how),
            "drift": lambda name: bench.drift(name),
            "floor": lambda name, size: floor(bench.split(name)[0][:size], bench.split(name)[1]),
        }
        start = lambda kind, *args: pool.submit(results.get, kind, work[kind], *args)
        helped = {name: start("helped", name) for name in bench.names}
        alone = {name: start("alone", name) for name in bench.names}
        drifting = {name: start("drift", name) for name in DRIFTING}
        compared = {(name, how): start("scored", name, how) for name in COMPARED for how in OBJECTIVES + CLASSES}
        cold = {name: start("cold", name) for name in LEFT_OUT}
        shipped = {name: start("shipped", name) for name in LEFT_OUT if family(name) not in SHIPPED}
        folds = {name: start("folds", name) for name in shipped}
        curves = {(name, size, prior): start("curve", name, size, prior)
                  for name in CURVES for size in SIZES if size <= len(bench.split(name)[0]) for prior in ("none", "prior")}
        drawn = {(name, size, draw, prior): start("drawn", name, size, draw, prior) for name in CURVES for size in DRAWN
                 if size <= len(bench.split(name)[0]) for draw in range(DRAWS) for prior in ("none", "prior")}
        floor_at = {(name, size): start("floor", name, size) for name, size, _ in curves}
        floors = {name: start("floor", name, None) for name in bench.names}
        adapting = {(name, seed): start("adapting", name, seed) for name in ADAPTING for seed in SEEDS}
        alone, helped, curves, drawn, cold, shipped, folds, adapting, compared, drifting, floor_at, floors = (
            {key: job.result() for key, job in jobs.items()}
            for jobs in (alone, helped, curves, drawn, cold, shipped, folds, adapting, compared, drifting, floor_at, floors))
    text = document(bench, floors, alone, helped, floor_at, curves, drawn, cold, shipped, folds, adapting) + further(compared, drifting)
    Path(args.out).with_suffix(".tmp").write_text(text)
    Path(args.out).with_suffix(".tmp").rename(args.out)
    print(f"ranker: wrote {args.out}", file=sys.stderr)


def document(bench, floors, alone, helped, floor_at, curves, drawn, cold, shipped, folds, adapting):
    parts = [INTRODUCTION]
    encoder = json.loads(ENCODER.read_text()) if ENCODER.is_file() else {"own": {}, "left_out": {}}
    encoded = {name: encoder["own"].get(name, {}).get("tau_b") for name in bench.names}
    rows = [[name, three(floors[name]), three(alone.get(name, [None])[0]), three(helped[name][0]), f"{helped[name][0] - floors[name]:+.3f}",
             three(encoded[name]), three(helped[name][1]["interval_80_coverage"]), f"{helped[name][1]['us_per_prompt']:.0f}, {helped[name][1]['us_p99']:.0f}"]
            for name in bench.names]
    mean = lambda values: statistics.mean(values)
    taus = [helped[name][0] for name in bench.names]
    rows.append(["**mean**", f"**{mean(floors.values()):.3f}**", "",
                 f"**{mean(taus):.3f}**", f"**{mean(taus) - mean(floors.values()):+.3f}**",
                 f"**{mean(encoded.values()):.3f}**" if all(encoded.values()) else "-",
                 three(mean([report["interval_80_coverage"] for _, report in helped.values()])), ""])
    parts.append(table(["trace", "floor", "alone", "with a prior", "over the floor", "MiniLM", "within 80 %", "us a prompt, p99"], rows))
    parts.append("\n## Tau-b against the number of prompts learned from\n")
    rows = []
    for name in CURVES:
        sizes = sorted({size for other, size, _ in curves if other == name})
        for label, value in (("floor", lambda s: floor_at[name, s]), ("alone", lambda s: curves[name, s, "none"][0]),
                             ("with a prior", lambda s: curves[name, s, "prior"][0])):
            rows.append([name, label, *(three(value(size)) if size in sizes else "" for size in SIZES)])
    parts.append(table(["trace", "", *(f"{size:,}" for size in SIZES)], rows))
    parts.append(f"\nWhat the prior adds, over {DRAWS} random draws of the learned prompts: tau-b with it less tau-b alone, mean and worst.\n")
    gain = lambda name, size: [drawn[name, size, draw, "prior"] - drawn[name, size, draw, "none"] for draw in range(DRAWS)]
    cell = lambda gains: f"{mean(gains):+.4f}, {min(gains):+.3f}"
    rows = [[name, *(cell(gain(name, size)) if (name, size, 0, "none") in drawn else "" for size in DRAWN)] for name in CURVES]
    parts.append(table(["trace", *(f"{size:,}" for size in DRAWN)], rows))
    parts.append("\n## A family left out\n\nThe prior, cold, on the held-out prompts of a family that it has never seen, "
                 "and the shipped ranker where it has not either, against the ranker trained on that trace. Over all fifths: each fifth of the "
                 "prompts held out in turn, as unseen by prior and shipped ranker as the first.\n")
    rows = []
    for name in LEFT_OUT:
        tau, inside = cold[name]["files"][0]["tau_b"], helped[name][0]
        ships = shipped[name]["files"][0]["tau_b"] if name in shipped else None
        both = lambda prior, ships, inside: f"{prior / inside:.3f}, {ships / inside:.3f}" if ships else f"{prior / inside:.3f}"
        rows.append([name, three(tau), three(ships), three(inside), both(tau, ships, inside), both(*folds[name]) if name in folds else "-",
                     three(encoder["left_out"].get(name))])
    parts.append(table(["trace", "the prior", "the shipped ranker", "trained on it", "ratio of each", "ratio over all fifths", "MiniLM, never seen"], rows))
    parts.append("\n## Adaptation while serving\n\nThe same prior hears answers one by one, as in `outrank serve` ("
                 f"orders tried: {len(SEEDS)}, the median of which stands here); last column: trained offline on all of them.\n")
    rows = []
    for name in ADAPTING:
        cells = []
        for point in POINTS:
            found = [p["tau_b"] for seed in SEEDS for p in adapting[name, seed]["adaptation"][0]["points"] if p["observed"] == point]
            cells.append(three(statistics.median(found)) if found else "")
        last = [adapting[name, seed]["adaptation"][0]["points"][-1] for seed in SEEDS]
        cells.append(f"{statistics.median(p['tau_b'] for p in last):.3f} ({last[0]['observed']:,})")
        rows.append([name, *cells, three(helped[name][0])])
    parts.append(table(["trace", *(f"{point:,}" for point in POINTS), "all", "offline"], rows))
    return "\n".join(parts) + "\n"


def further(compared, drifting):
    """Ranking against classes and other objectives; drift; how far off the ETA is."""
    parts = ["\n## Ranking against classes, and other objectives\n\nThe same features, rows and split; each trained alone. Burst: 2,000 "
             f"held-out requests, shortest predicted first, profile `{PROFILE}`, mean s/token over fcfs (5 seeds); all predictions as bare "
             "numbers. tau-b leaves ties out of its denominator, so classes look better by it than they order; what the ranker has when its "
             "scores are cut into ten classes too stands in brackets.\n"]
    rows = []
    for name in COMPARED:
        cut = lambda how: f" ({three(compared[name, how][3])})" if how == "listmle" else ""
        rows += [[name, how, three(compared[name, how][0]) + cut(how), three(compared[name, how][1])] for how in OBJECTIVES + CLASSES]
        rows.append([name, "true lengths", "1", three(compared[name, "listmle"][2])])
    parts.append(table(["trace", "learned as", "tau-b", "burst"], rows))
    parts.append("\n## Drift\n\nAn hour at 0.95 of capacity in which the ranker is upside down from 1,200 s to 2,400 s. s/token: mean over "
                 "that of fcfs on the same requests.\n")
    rows = []
    for name in DRIFTING:
        steady, flipped = drifting[name]["ranker"], drifting[name]["flipped:1200:2400"]
        ratio = lambda runs: runs["outrank"]["metrics"]["s_per_token"]["mean"] / runs["fcfs"]["metrics"]["s_per_token"]["mean"]
        changes = flipped["outrank"]["trust_changes"]
        to = [change["at_s"] - 1200 for change in changes if change["trust"] == "distrusted"]
        back = [change["at_s"] - 2400 for change in changes if change["trust"] == "trusted"]
        rows.append([name, f"{to[0]:.0f} s" if to else "never", f"{back[0]:.0f} s" if back else "never", str(len(changes)),
                     three(ratio(steady)), three(ratio(flipped)), str(len(steady["outrank"]["trust_changes"]))])
    parts.append(table(["trace", "to arrival order after", "back after", "changes in the hour", "without drift", "with it", "changes without drift"], rows))
    parts.append("\n## How far off the ETA is\n\nThe same hour without drift: seconds between the end that a client is told on arrival and the true "
                 "one, and E2E beside it.\n")
    rows = []
    for name in DRIFTING:
        metrics = drifting[name]["ranker"]["outrank"]["metrics"]
        cell = lambda key: f"{metrics[key]['p50']:.2f}, {metrics[key]['p90']:.2f}"
        rows.append([name, cell("eta_error_s"), cell("e2e_s")])
    parts.append(table(["trace", "ETA error p50, p90 (s)", "E2E p50, p90 (s)"], rows))
    return "\n".join(parts) + "\n"


INTRODUCTION = """# How well the ranker ranks

Made by `make ranker-table DATA=DIR`. Kendall tau-b on held-out prompts, a fifth of each trace by the hash of the
prompt. Floor: ridge regression on hashed word 1-2-grams and four surface features. Alone: one linear ranker a trace (hashed word
1-2-grams, character 4-grams, opening and closing words, surface facts, the guess of the encoder; ridge, then ListMLE with early
stopping by cross-validation). With a prior: the same, mixed with a ranker that learned from our own prompts with estimated lengths
(traces/README.md) and the training parts of the other families of traces, as `outrank train` mixes in the shipped one. The same
settings for all. One seed, one split: rows with a hundred test prompts (arenahard, ifbench) are noisy either way. MiniLM: MiniLM-L6
(22 M parameters) fine-tuned with ListMLE on the same split, as in the paper (`bench/encoder`, on a GPU; 11 to 106 ms a prompt on two
CPU cores). Within 80 %: share of answers whose length lies in the interval that is said to hold 80 % of them. Time: microseconds
a prompt on one thread, mean and 99th percentile, while other work ran on both cores. Traces whose licence keeps them out of what
ships are in these tables only.

What the encoder has seen (bench/encoder): the learned part of alpaca-libre, arenahard, chatdoctor, gpteacher, ifbench, mifeval, and of
mixed what is from oasst, gpteacher and chatdoctor, and our own prompts; no held-out prompt, and each learned prompt was judged by a teacher that
had not seen it. flask, instructionwild, alpaca-davinci003, halueval and mmlupro it has never seen (0.1 % of davinci003's and
instructionwild's prompts stand in what it has). So a family left out is left out of everything in the rows of flask, instructionwild
and mmlupro.

How far to trust it: the ranker's features and settings were chosen on inner validation, over about 40 tried, but the sweep
printed held-out figures too, so whoever chose had seen them. The rule by which a prior is mixed in was chosen on 19 of these
traces, each with the prior of the other families, two random draws of 30, 100 and 300 learned prompts each and one of 850, 1,000 and
3,000, by tau-b on held-out prompts, and confirmed on four other draws of 21 traces; that with many rows it leans to what was learned,
inside the learned parts of nine traces. How many of our own prompts the shipped ranker learns from was chosen with its cold
tau-b on seven or eight of these traces in view (flask-gpt4, -llama2-chat-13b, -tulu-7b, -vicuna-33b, instructionwild,
alpaca-davinci003, halueval: mean 0.292 without our own prompts, 0.367 with 8,290; 0.425 with the encoder that MiniLMs had taught, 0.459
with this one). The encoder's teacher and student were chosen with flask, instructionwild, davinci003 and halueval in view. The weights of
prompts that offer choices were made with mmlupro in view, and that they go without the encoder's guess was decided on them: cold on
mmlupro 0.31 with it, 0.44 without (of the first encoder).
What did not pay: static token embeddings (wordllama) beside the hashed words; boosted
trees on top of the linear score, +0.003; 32 further outputs of the encoder, within 0.005 of its guess alone; the mean of rankers of
two or three objectives (on 850 prompts of 11 traces 0.506 to 0.508, ListMLE alone 0.509).
"""

if __name__ == "__main__":
    main()
