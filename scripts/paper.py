#!/usr/bin/env python3
"""Writes docs/paper.md: the tables and figures of the paper, made again in the simulator, its figures beside ours.

usage: paper.py --outrank target/release/outrank [--data DIR] [--out docs/paper.md] [--threads N]

The paper is "Efficient LLM Scheduling by Learning to Rank" (Fu et al., NeurIPS 2024, arXiv 2408.15792). With --data the
traces are DIR/length/*.jsonl.gz and the project's own; without it only its own. A ranker is trained on the training
part of each trace and judged on its held-out prompts only. The document holds figures, nothing of the traces, and the
same traces and binary give the same bytes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parent.parent
PROFILE = "a100-40g-llama3-8b"
SEEDS = 5
# Where a section has many runs.
FEW_SEEDS = 3
BURST = "burst:2000"
BURST_REQUESTS = 2000
LOADS = (0.25, 0.5, 0.8, 1.0, 1.5, 2.0, 4.0)
LOW_LOAD = 0.5
HIGH_LOAD = 2.0
# Scoring of one prompt by our ranker, as `make bench-score` measures it, and what the paper's OPT-125M takes.
OUR_SCORE_S = 66e-6
PAPER_SCORE_S = (0.001, 0.003, 0.007)
NOISES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 4.0)

NO_PROMOTION = "threshold_steps=1000000000"
LTR_UNPROMOTED = f"ltr:{NO_PROMOTION}"
LTR_LATE = "ltr:threshold_steps=1000"
WIDTHS = ("class", "class:width_tokens=100", "class:width_tokens=10", "class:width_tokens=1",
          "class:classes=geometric")
BURST_POLICIES = ("fcfs", "mlfq", "mlfq:factor=10", "po", "class", f"class:{NO_PROMOTION}", "ltr", LTR_UNPROMOTED,
                  "outrank", "oracle-sjf", "oracle-srtf")
ONLINE_POLICIES = ("fcfs", "mlfq", "po", "class", "ltr", "outrank", "oracle-sjf")
LABELS = {
    "class": "class (820)",
    "class:width_tokens=100": "class (100)",
    "class:width_tokens=10": "class (10)",
    "class:width_tokens=1": "class (1)",
    "class:classes=geometric": "class (geometric)",
    f"class:{NO_PROMOTION}": "class (820), no promotion",
    LTR_UNPROMOTED: "ltr, no promotion",
    LTR_LATE: "ltr, promotion after 1,000 steps",
    "mlfq:factor=10": "mlfq, factor 10",
}

# The paper's figures, Llama-3-8B on ShareGPT and LMSYS-Chat-1M.
PAPER_DATA = ("ShareGPT", "LMSYS")
PAPER_BURST_MEAN = {"fcfs": (1.15, 1.73), "mlfq": (1.07, 0.80), "po": (1.35, 0.75), "class": (1.13, 1.77),
                    "ltr": (0.56, 0.38)}
PAPER_BURST_P90 = {"fcfs": (1.60, 4.86), "mlfq": (1.57, 1.56), "po": (1.67, 1.47), "class": (1.51, 4.98),
                   "ltr": (0.67, 0.52)}
PAPER_FIRST_S = {"fcfs": (343, 197), "class": (422, 237), "ltr": (143, 30.5)}
PAPER_WITHIN = {"fcfs": (841, 1348), "class": (655, 1644), "ltr": (1706, 4434)}
PAPER_OUTPUT_TOKENS = (412, 293)
PAPER_RATES = (2, 4, 8, 16, 32, 64)
PAPER_ONLINE_FCFS = ((0.016, 0.032, 0.113, 0.484, 1.484, 3.935), (0.023, 0.046, 0.092, 0.460, 1.885, 5.609))
PAPER_ONLINE_LTR = ((0.016, 0.032, 0.097, 0.242, 0.613, 1.581), (0.023, 0.023, 0.069, 0.138, 0.322, 0.782))
# Its predictors, on lengths of Llama-3-70B: tau-b, s/token in the burst, seconds to 1,000 samples; FCFS of its tables.
PAPER_70B_FCFS = (1.44, 2.17)
PAPER_PREDICTORS = (
    ("another sample of the same model", (0.74, 0.46, "102"), (0.84, 0.34, "34.6")),
    ("ranking (ltr)", (0.54, 0.78, "232"), (0.62, 0.54, "59.7")),
    ("classes of 820", (0.24, 1.26, "513"), (0.17, 2.23, "339")),
    ("classes of 100", (0.49, 0.84, "266"), (0.58, 0.77, "102")),
    ("classes of 10", (0.46, 0.86, "272"), (0.57, 0.61, "78.8")),
    ("perception only (po)", (0.51, 1.04, "> 600"), (0.67, 0.95, "322")),
)


class PaperError(Exception):
    """What the user is told; no traceback."""


@dataclass(frozen=True)
class Trace:
    """A trace of prompts and answer lengths."""

    name: str
    # As the document calls the file.
    place: str
    file: Path
    # What the document says of it.
    what: str


@dataclass
class Simulated:
    """The runs of one command, without their timelines."""

    runs: list[dict]
    capacity_per_s: float

    def of(self, policy: str, load: float | None = None) -> list[dict]:
        """The runs of a policy, a run each seed; of those at a load, if one is given."""
        runs = [run for run in self.runs if run["policy"] == policy and load in (None, run["load"])]
        if not runs:
            raise PaperError(f"no run of {policy} at load {load} in the simulator's answer")
        return runs


Figure = Callable[[dict], float]


def metric(name: str, figure: str) -> Figure:
    """Picks a latency of a run, such as the mean of s_per_token."""
    return lambda run: run["metrics"][name][figure]


MEAN = metric("s_per_token", "mean")
P90 = metric("s_per_token", "p90")


def long_e2e_s(run: dict) -> float:
    """Mean E2E of the longest answers: the last tenth by length and, where a limit cut answers, the tenths as long."""
    tenths = run["by_length_decile"]
    longest = [tenth for tenth in tenths if tenth["tokens"][0] == tenths[-1]["tokens"][0]]
    return sum(tenth["e2e_s"]["mean"] * tenth["requests"] for tenth in longest) / sum(tenth["requests"] for tenth in longest)


def distrusted_share(run: dict) -> float:
    """Share of the time in which the monitor kept the ranker out, in percent."""
    return 100 * run["distrusted_s"] / run["duration_s"]


@dataclass
class Context:
    """What the sections share: the program, the traces, and what was run for more than one section."""

    outrank: Path
    traces: list[Trace]
    folder: Path
    threads: int | None
    trained: dict[str, dict] = field(default_factory=dict)
    burst: dict[str, Simulated] = field(default_factory=dict)
    unmonitored: dict[str, Simulated] = field(default_factory=dict)
    online: dict[str, Simulated] = field(default_factory=dict)

    def ranker(self, trace: Trace) -> Path:
        """Where the ranker of a trace lies."""
        return self.folder / f"{trace.name}.outrank"

    def run(self, *arguments: object) -> dict:
        """Runs outrank and returns its JSON. Settings of the caller's shell and folder do not reach it."""
        command = [str(self.outrank), "--json", *map(str, arguments)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OUTRANK_")}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PaperError(f"exit code {done.returncode} of: {' '.join(command)}\n{done.stderr.strip()}")
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError as error:
            raise PaperError(f"no JSON from: {' '.join(command)}: {error}") from error

    def simulate(self, trace: Trace, arguments: Sequence[str]) -> Simulated:
        """Runs `outrank simulate` on the held-out prompts of a trace, with its ranker."""
        note(f"{trace.name}: simulate {' '.join(arguments)}")
        threads = [] if self.threads is None else ["--threads", self.threads]
        report = self.run("simulate", "--trace", trace.file, "--held-out", "--ranker", self.ranker(trace),
                          "--profile", PROFILE, *arguments, *threads)
        for run in report["runs"]:
            del run["timeline"]
        return Simulated(report["runs"], report["capacity_per_s"][0][1])

    def simulate_all(self, arguments: Sequence[str]) -> dict[str, Simulated]:
        """The same on every trace, by its name."""
        return {trace.name: self.simulate(trace, arguments) for trace in self.traces}


def note(text: str) -> None:
    """Tells the user how far it is."""
    print(f"paper: {text}", file=sys.stderr, flush=True)


def simulation(arrivals: Sequence[str], policies: Sequence[str], *more: str, seeds: int = SEEDS) -> list[str]:
    """The arguments of a simulation, but for trace, ranker and profile."""
    patterns = [part for pattern in arrivals for part in ("--arrivals", pattern)]
    return [*patterns, "--policies", ",".join(policies), "--seeds", str(seeds), *more]


def command(arguments: Sequence[str]) -> str:
    """The command as the document shows it."""
    return fenced(f"outrank simulate --trace TRACE --held-out --ranker RANKER --profile {PROFILE} \\\n    "
                  + " ".join(arguments))


def fenced(text: str) -> str:
    """A block of code."""
    return f"```\n{text}\n```"


def label(policy: str) -> str:
    """How tables call a policy."""
    return LABELS.get(policy, policy)


def number(value: float) -> str:
    """Three digits that count, without exponent."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{value:.{decimals}f}"


def figures(runs: Sequence[dict], figure: Figure) -> list[float]:
    """A figure of every run."""
    return [figure(run) for run in runs]


def ratios(runs: Sequence[dict], base: Sequence[dict], figure: Figure) -> list[float]:
    """A figure of every run over that of the base on the same seed."""
    by_seed = {run["seed"]: figure(run) for run in base}
    return [figure(run) / by_seed[run["seed"]] for run in runs]


def spread(values: Sequence[float], shown: Callable[[float], str] = number) -> str:
    """Median, and least and greatest."""
    return f"{shown(median(values))} ({shown(min(values))} to {shown(max(values))})"


def ratio(value: float) -> str:
    """A ratio as tables show it."""
    return f"{value:.2f}"


def fine_ratio(value: float) -> str:
    """A ratio near 1."""
    return f"{value:.3f}"


def between(values: Sequence[float], shown: Callable[[float], str] = ratio) -> str:
    """Least to greatest, for prose."""
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def paper_columns() -> list[str]:
    """Headings of the paper's columns."""
    return [f"paper, {data}" for data in PAPER_DATA]


def policy_table(context: Context, results: dict[str, Simulated], policies: Sequence[str],
                 cell: Callable[[Simulated, str], str], paper: Callable[[str], Sequence[str]]) -> str:
    """A row a policy, a column a trace, and the paper's columns ahead of them."""
    rows = [[label(policy), *paper(policy), *(cell(results[trace.name], policy) for trace in context.traces)]
            for policy in policies]
    return table(["", *paper_columns(), *(trace.name for trace in context.traces)], rows)


def paper_values(values: dict[str, tuple[float, float]], over_fcfs: bool = False) -> Callable[[str], list[str]]:
    """The paper's cells of a policy, as they are or over its FCFS; a dash where it has none."""
    def cells(policy: str) -> list[str]:
        if policy not in values:
            return ["-", "-"]
        if over_fcfs:
            return [ratio(value / base) for value, base in zip(values[policy], values["fcfs"], strict=True)]
        return [f"{value:.2f}" if value < 10 else f"{value:,}" for value in values[policy]]
    return cells


def over_fcfs(result: Simulated, policy: str, figure: Figure = MEAN, load: float | None = None) -> float:
    """Median over the seeds of the ratio to FCFS."""
    return median(ratios(result.of(policy, load), result.of("fcfs", load), figure))


def train(context: Context) -> None:
    """Trains a ranker on the training part of every trace."""
    for trace in context.traces:
        note(f"{trace.name}: train")
        context.trained[trace.name] = context.run("train", "--trace", trace.file, "--out", context.ranker(trace))


def setup(context: Context) -> str:
    """Section 1."""
    rows = []
    for trace in context.traces:
        fcfs = context.burst[trace.name].of("fcfs")
        requests = sum(run["requests"] for run in fcfs)
        held_out = context.trained[trace.name]["held_out"]
        rows.append([
            f"`{trace.place}`", trace.what, f"{held_out['requests']:,}",
            number(sum(run["prompt_tokens"] for run in fcfs) / requests),
            number(sum(run["output_tokens"] for run in fcfs) / requests),
            fine_ratio(held_out["tau_b"]),
            number(context.burst[trace.name].capacity_per_s),
            number(median(figures(fcfs, lambda run: run["tokens_per_s"]))),
        ])
    for data, prompt, output, tau, within in zip(
            PAPER_DATA, ("240", "85"), PAPER_OUTPUT_TOKENS, ("0.54", "0.62"), PAPER_WITHIN["fcfs"], strict=True):
        rows.append([f"paper, {data}", "chat, Llama-3-8B; tau-b on lengths of Llama-3-70B", "1,000", prompt, str(output),
                     tau, f"about {within / 300:.1f}", f"about {number(within * output / 300)}"])
    header = ["trace", "answers", "held-out prompts", "prompt tokens", "answer tokens", "tau-b", "capacity, requests/s",
              "FCFS tokens/s"]
    few = [f"{trace.name} {context.trained[trace.name]['held_out']['requests']}" for trace in context.traces
           if context.trained[trace.name]["held_out"]["requests"] < BURST_REQUESTS]
    repeated = (f" Where fewer than {BURST_REQUESTS:,} prompts are held out ({', '.join(few)}), a burst takes them "
                "several times." if few else "")
    return f"""## 1. Set-up

| | the paper | here |
|---|---|---|
| engine | vLLM 0.4.1 on A100-40G, 131,000 KV tokens, 256 seats, 768 tokens a step, chunked prefill, swap preemption | \
the production scheduler of outrank under a virtual clock; the same limits; step times of the profile `{PROFILE}` |
| step times | real | **not measured**: shaped from the roofline of the card, plus a fixed engine time a step |
| model | Llama-3-8B, and 70B on 8 cards | 8B only: there is no profile of the 70B set-up |
| ranker | OPT-125M with a linear layer, ListMLE, on a GPU | linear ranker over hashed words, ListMLE, on the CPU |
| traffic | ShareGPT, LMSYS-Chat-1M, lengths sampled from the served model | the traces below: neither of the two is at hand |
| lengths | replayed (`ignore_eos`) | replayed |
| baselines | own predictors for classes and perception | one ranker for all: `class` and `po` differ from `ltr` in what \
they do with its score |

Each trace has its own ranker, trained on the prompts that the hash rule leaves to training (about 80 %); every run below \
takes held-out prompts only. A run draws its requests at random from them; a table says how many seeds (runs) it has, and \
"a (b to c)" is median, least and greatest over them.{repeated} Nothing of the traces is in this document.

{fenced('outrank train --trace TRACE --out RANKER')}

{table(header, rows)}

Prompt and answer tokens are means over the requests of section 2. Capacity is what the simulated engine answers under FCFS \
while requests wait. The paper does not state its capacity: "about" divides the answers that its FCFS gave in 300 s \
(section 4) by 300, and multiplies by its mean length. The simulated engine is thus several times as fast as the engine \
of the paper, whose Python side of 2024 the profile does not hold in full. **So compare ratios to FCFS, not seconds**, and read \
settings that count steps (200 steps of promotion) with that in mind: section 6.

{cross_tau(context)}"""


def cross_tau(context: Context) -> str:
    """Tau-b of every ranker on every trace."""
    rows = []
    for learned in context.traces:
        note(f"{learned.name}: eval")
        places = [part for trace in context.traces for part in ("--trace", trace.file)]
        files = context.run("eval", "--held-out", "--ranker", context.ranker(learned), *places)["files"]
        rows.append([learned.name, *(f"{file['tau_b']:.2f}" for file in files)])
    if len(rows) < 2:
        return "With one trace there is no tau-b across data; the paper has 0.45 (ShareGPT to LMSYS) and 0.40 (the reverse)."
    return f"""Tau-b across data, a row the trace learned from, a column the held-out prompts judged by; the paper has 0.45 \
(ShareGPT to LMSYS) and 0.40 (the reverse):

{fenced('outrank eval --held-out --ranker RANKER --trace TRACE --trace TRACE ...')}

{table(['learned from', *(trace.name for trace in context.traces)], rows)}"""


def unmonitored_burst() -> list[str]:
    """The burst again, with the monitor off."""
    return simulation([BURST], ("fcfs", "outrank"), "--no-monitor")


def burst(context: Context) -> str:
    """Section 2: the paper's table 1."""
    arguments = simulation([BURST], BURST_POLICIES)
    results = context.burst
    sections = [
        ("Mean s/token", lambda result, policy: spread(figures(result.of(policy), MEAN)), paper_values(PAPER_BURST_MEAN)),
        ("p90 s/token", lambda result, policy: spread(figures(result.of(policy), P90)), paper_values(PAPER_BURST_P90)),
        ("Mean over that of FCFS", lambda result, policy: spread(ratios(result.of(policy), result.of("fcfs"), MEAN), ratio),
         paper_values(PAPER_BURST_MEAN, over_fcfs=True)),
        ("p90 over that of FCFS", lambda result, policy: spread(ratios(result.of(policy), result.of("fcfs"), P90), ratio),
         paper_values(PAPER_BURST_P90, over_fcfs=True)),
    ]
    tables = "\n\n".join(f"{title}:\n\n{policy_table(context, results, BURST_POLICIES, cell, paper)}"
                         for title, cell, paper in sections)

    def cost(result: Simulated, policy: str) -> str:
        switches = median(figures(result.of(policy), lambda run: run["preemptions"] / run["requests"]))
        return f"{switches:.2f}, {over_fcfs(result, policy, lambda run: run['tokens_per_s']):.2f}"

    rows = [[label(policy), *(cost(results[trace.name], policy) for trace in context.traces)] for policy in BURST_POLICIES]
    monitored = []
    for trace in context.traces:
        result, free = results[trace.name], context.unmonitored[trace.name]
        monitored.append([trace.name, spread(figures(result.of("outrank"), distrusted_share), lambda share: f"{share:.0f}"),
                          ratio(over_fcfs(result, "outrank")), ratio(over_fcfs(free, "outrank"))])
    return f"""## 2. A burst of 2,000 requests (the paper's table 1)

All arrive at once; s/token is the time to the end of an answer over its tokens. {SEEDS} seeds.

{command(arguments)}

{tables}

What it costs: preemptions a request, and tokens a second over those of FCFS (medians):

{table(['', *(trace.name for trace in context.traces)], rows)}

The monitor of `outrank` falls back to FCFS where finished answers contradict the ranker. Share of the time in which it did, in \
percent, and mean s/token over FCFS with it and without (`--no-monitor`): where the last is lower, it distrusted a ranker that \
was worth following.

{table(['', 'distrusted, %', 'outrank', 'outrank, no monitor'], monitored)}

- `class (820)` without promotion is FCFS but for the few whose prediction exceeds 820 tokens, as in the paper. With promotion \
all who wait have a turn after 200 steps, which is nearer to round robin.
- `ltr` without promotion is the pure order of the ranker. What promotion costs in a burst is the difference to `ltr`; \
section 6 says why it is more than in the paper.
- `outrank` preempts rarely and keeps the throughput of FCFS; `ltr` (with promotion), `mlfq` and `po` switch a request again and again, and \
each switch is a swap over PCIe that the step waits for.
- The oracles know the true length of the very answer; the paper's oracle is another sample of the same prompt."""


def online(context: Context) -> str:
    """Section 3: the paper's figure of latency against rate."""
    parts = []
    for trace in context.traces:
        result = context.online[trace.name]
        for title, figure in (("mean s/token", MEAN), ("p99 TTFT, s", metric("ttft_s", "p99"))):
            rows = []
            for load in LOADS:
                absolute = [number(median(figures(result.of(policy, load), figure))) for policy in ONLINE_POLICIES]
                relative = [ratio(over_fcfs(result, policy, figure, load)) for policy in ("ltr", "outrank")]
                rows.append([f"{load:g}", *absolute, *relative])
            header = ["load", *map(label, ONLINE_POLICIES), "ltr / fcfs", "outrank / fcfs"]
            parts.append(f"{trace.name}, {title}:\n\n{table(header, rows)}")
    rows = []
    for at, rate in enumerate(PAPER_RATES):
        row = [str(rate)]
        for data in range(len(PAPER_DATA)):
            row += [f"{rate / (PAPER_WITHIN['fcfs'][data] / 300):.1f}", f"{PAPER_ONLINE_FCFS[data][at]:.3f}",
                    f"{PAPER_ONLINE_LTR[data][at]:.3f}", ratio(PAPER_ONLINE_LTR[data][at] / PAPER_ONLINE_FCFS[data][at])]
        rows.append(row)
    header = ["requests/s", *(f"{data}: {what}" for data in PAPER_DATA for what in ("load", "fcfs", "ltr", "ltr / fcfs"))]
    arguments = simulation([f"load:{load:g}" for load in LOADS], ONLINE_POLICIES)
    return f"""## 3. Online: latency against load

Poisson arrivals for 60 s, then all are waited for; rates are fractions of capacity (section 1). Medians of {SEEDS} seeds.

{command(arguments)}

{chr(10).join(f'{part}{chr(10)}' for part in parts)}
The paper's curve (read off a plot), mean s/token. "load" is its rate over the capacity that section 1 derives, so it is ours \
and rough:

{table(header, rows)}

The shape is the paper's: nothing to gain while nobody waits, most when the queue is long. Where our curves leave FCFS at a \
higher load, that is the 60 s: answers that take longer than the arrivals last never fill the engine, and the \
heavier the tail of lengths, the later it is full. Under overload `ltr` and `outrank` part: \
section 9 has what either pays. Where several thousand wait at once, promotion \
turns `ltr` into a round robin (section 4)."""


def data_generation(context: Context) -> str:
    """Section 4: the paper's table of synthetic data generation."""
    policies = ("fcfs", "class", f"class:{NO_PROMOTION}", "ltr", LTR_UNPROMOTED, "outrank", "oracle-sjf")
    arguments = simulation(["burst:10000"], policies, "--first", "1000", "--within-s", "300", seeds=FEW_SEEDS)
    results = context.simulate_all(arguments)

    def cell(figure: Figure) -> Callable[[Simulated, str], str]:
        return lambda result, policy: (f"{number(median(figures(result.of(policy), figure)))}"
                                       f" ({ratio(over_fcfs(result, policy, figure))})")

    def paper(values: dict[str, tuple[float, float]]) -> Callable[[str], list[str]]:
        plain, relative = paper_values(values), paper_values(values, over_fcfs=True)
        return lambda policy: [value if value == "-" else f"{value} ({over})"
                               for value, over in zip(plain(policy), relative(policy), strict=True)]

    return f"""## 4. Data generation: the first answers of 10,000

All 10,000 requests arrive at once and any 1,000 answers will do. Medians of {FEW_SEEDS} seeds, the ratio to FCFS in brackets.

{command(arguments)}

Seconds to the first 1,000 answers (fewer are better):

{policy_table(context, results, policies, cell(lambda run: run["first_answers_s"]), paper(PAPER_FIRST_S))}

Answers within 300 s (more are better):

{policy_table(context, results, policies, cell(lambda run: run["answered_within"]), paper(PAPER_WITHIN))}

The engine here is several times as fast (section 1), so the answers within 300 s are a larger part of the 10,000 than in the \
paper and their ratio has less room to rise. Only the order counts in this task, and promotion disturbs it: `ltr` promotes each of N \
who wait for 10 steps about every 210, so about N / 21 of them want a seat at any time, and above some 5,400 waiting requests the 256 seats \
hold none but promoted ones: a round robin. So `ltr` without promotion is the row to read beside the paper's here."""


def classes(context: Context) -> str:
    """Section 5: classes against ranking."""
    policies = [*WIDTHS, "ltr"]
    unpromoted = {policy: f"{policy}:{NO_PROMOTION}" for policy in policies}
    arguments = simulation([BURST], ("fcfs", *policies, *unpromoted.values()), seeds=FEW_SEEDS)
    results = context.simulate_all(arguments)
    paper_rows = {"class": "classes of 820", "class:width_tokens=100": "classes of 100",
                  "class:width_tokens=10": "classes of 10", "ltr": "ranking (ltr)"}
    predictors = {name: (sharegpt, lmsys) for name, sharegpt, lmsys in PAPER_PREDICTORS}

    def paper(policy: str) -> list[str]:
        if policy not in paper_rows:
            return ["-", "-"]
        pairs = zip(predictors[paper_rows[policy]], PAPER_70B_FCFS, strict=True)
        return [ratio(burst_mean / fcfs) for (_, burst_mean, _), fcfs in pairs]

    def cell(result: Simulated, policy: str) -> str:
        return f"{ratio(over_fcfs(result, policy))}, {ratio(over_fcfs(result, unpromoted[policy]))}"

    return f"""## 5. Classes against ranking

The paper trains a classifier for each width; here the ranker's own prediction is put into classes, so that the table shows what \
the resolution of the order costs and nothing else. Mean s/token over that of FCFS, with promotion (as `ltr` has it) and \
without; medians of {FEW_SEEDS} seeds. The paper's columns are its table of predictors on lengths of Llama-3-70B.

{command(arguments)}

{policy_table(context, results, policies, cell, paper)}

Classes of 1 are the ranking, and classes of 820 hold nearly all requests in one. What wide classes lose is the order of the short answers, \
which decides the mean of s/token; geometric classes are fine where answers are short and need few classes. The paper's classes of 820 also lose because \
their classifier ranks badly (tau-b 0.17 and 0.24), which this table leaves out. The simulator reports no tau-b of classes."""


def starvation(context: Context) -> str:
    """Section 6: starvation prevention."""
    policies = ("fcfs", LTR_UNPROMOTED, "ltr", LTR_LATE, "outrank")
    arrivals = ((BURST, None), (f"load:{HIGH_LOAD:g}", HIGH_LOAD))
    arguments = simulation([pattern for pattern, _ in arrivals], policies, seeds=FEW_SEEDS)
    results = context.simulate_all(arguments)
    waiting = metric("max_waiting_s", "mean")
    waits, means, effects = [], [], []
    for trace in context.traces:
        for pattern, load in arrivals:
            runs = {policy: [run for run in results[trace.name].of(policy) if run["load"] == load] for policy in policies}
            name = f"{trace.name}, {pattern}"
            waits.append([name, *(number(median(figures(runs[policy], waiting))) for policy in policies)])
            means.append([name, *(number(median(figures(runs[policy], MEAN))) for policy in policies)])
            effect = [name]
            for policy in ("ltr", LTR_LATE, "outrank"):
                shorter = median(ratios(runs[LTR_UNPROMOTED], runs[policy], waiting))
                cost = 100 * (median(ratios(runs[policy], runs[LTR_UNPROMOTED], MEAN)) - 1)
                effect.append(f"{shorter:.2f}x, {cost:+.0f} %")
            effects.append(effect)
    header = ["", *map(label, policies)]
    return f"""## 6. Starvation prevention

`ltr` promotes who was left out of 200 steps in a row, for 10 steps, as in the paper's scripts; "no promotion" never does. \
max_waiting_time of a request is the larger of its TTFT and the largest gap between two of its tokens. Medians of {FEW_SEEDS} seeds.

{command(arguments)}

Mean max_waiting_time, s:

{table(header, waits)}

Mean s/token:

{table(header, means)}

How much shorter the mean max_waiting_time is than without promotion, and what that costs in mean s/token:

{table(['', 'ltr', label(LTR_LATE), 'outrank'], effects)}

The paper has up to 3.4x shorter at less than 10 % of latency mostly, and less than 30 % always. Its 200 steps are \
longer: if its engine is several times as slow (section 1), 1,000 steps here last about as long as 200 there. That the cost \
depends on it is the weakness of a limit that counts steps. `outrank` counts seconds: nobody who arrives more than \
its patience later may overtake. That bounds the worst case, not the mean: in a burst all arrive at once, and nobody is later."""


def overhead(context: Context) -> str:
    """Section 7: what the predictor costs."""
    policies = ("fcfs", "ltr", "outrank")
    arrivals = [BURST, f"load:{LOW_LOAD:g}"]
    variants: list[tuple[str, list[str]]] = [("free", []), ("66 µs beside the engine (ours)", ["--score-s", f"{OUR_SCORE_S:f}"])]
    for score_s in PAPER_SCORE_S:
        variants.append((f"{1000 * score_s:g} ms beside the engine", ["--score-s", f"{score_s:g}"]))
    for score_s in PAPER_SCORE_S:
        variants.append((f"{1000 * score_s:g} ms, the engine waits (the paper's)",
                         ["--score-s", f"{score_s:g}", "--blocking-scores"]))
    results = [context.simulate_all(simulation(arrivals, policies, *more, seeds=FEW_SEEDS)) for _, more in variants]
    free = results[0]
    tables = []
    for title, load in (("The burst", None), (f"Load {LOW_LOAD:g}", LOW_LOAD)):
        rows = []
        for (name, _), result in zip(variants, results, strict=True):
            row = [name]
            for trace in context.traces:
                base = [run for run in free[trace.name].of("fcfs") if run["load"] == load]
                for policy in ("ltr", "outrank"):
                    runs = [run for run in result[trace.name].of(policy) if run["load"] == load]
                    row.append(fine_ratio(median(ratios(runs, base, MEAN))))
            rows.append(row)
        header = ["scoring", *(f"{trace.name}: {policy}" for trace in context.traces for policy in ("ltr", "outrank"))]
        tables.append(f"{title}:\n\n{table(header, rows)}")
    shares = [100 * score_s * BURST_REQUESTS / median(figures(context.burst[trace.name].of("fcfs"), lambda run: run["duration_s"]))
              for score_s in (PAPER_SCORE_S[0], PAPER_SCORE_S[-1]) for trace in context.traces]
    lasting = chr(10).join(f"{part}{chr(10)}" for part in tables)
    return f"""## 7. Overhead of the predictor

The paper scores new requests inside the scheduler, 1 to 7 ms each, and the model waits; outrank scores beside the engine, and a \
request without a score stands in the queue at the mean length until its score is there. 66 µs is what `make bench-score` measures \
for a long prompt, and taken as given here. Mean s/token over that of FCFS without any scoring; medians of {FEW_SEEDS} seeds.

{command(simulation(arrivals, policies, '--score-s', 'S', '[--blocking-scores]', seeds=FEW_SEEDS))}

{lasting}
The paper puts the predictor at 0.8 to 1.7 % of the total time; 1 to 7 ms a request are {between(shares, lambda share: f'{share:.1f}')} % \
of the time of the burst here, where the engine is faster. What costs at low load is the stall: every request in the batch waits for the score of each \
that arrives. Beside the engine scoring costs nothing at low load. In a burst it costs \
order: the first 256 take their seats unscored, and `outrank`, which preempts little, lets them keep those; `ltr` puts them out at once."""


def tau_against_latency(context: Context) -> str:
    """Section 8: what a better ranker would give."""
    policies = ("fcfs", LTR_UNPROMOTED, "ltr", "outrank")
    sources = [(f"{noise:g}", f"noisy:{noise:g}") for noise in NOISES] + [("random", "random")]
    results = [(name, context.simulate_all(simulation([BURST], policies, "--scores", source, seeds=FEW_SEEDS))) for name, source in sources]
    header = ["sigma", "tau-b", *map(label, policies[1:]), "distrusted, %"]
    parts = []
    for trace in context.traces:
        rows = []
        for name, simulated in [*results, ("the ranker", context.burst)]:
            result = simulated[trace.name]
            tau = median(figures(result.of("fcfs"), lambda run: run["tau_b"]))
            rows.append([name, f"{tau:.2f}", *(ratio(over_fcfs(result, policy)) for policy in policies[1:]),
                         f"{median(figures(result.of('outrank'), distrusted_share)):.0f}"])
        parts.append(f"{trace.name}:\n\n{table(header, rows)}\n")
    paper_rows = [[name, *(cell for (tau, mean, first), fcfs in zip((sharegpt, lmsys), PAPER_70B_FCFS, strict=True)
                           for cell in (f"{tau}", ratio(mean / fcfs), first))] for name, sharegpt, lmsys in PAPER_PREDICTORS]
    paper_header = ["predictor", *(f"{data}: {what}" for data in PAPER_DATA for what in ("tau-b", "burst / fcfs", "s to 1,000"))]
    tables = "\n".join(parts)
    return f"""## 8. Tau-b against latency

The prediction is the true length times exp(sigma · a standard normal); at "random" it is the length of another request. Mean s/token over \
that of FCFS in the burst of section 2; medians of {FEW_SEEDS} seeds. "the ranker" is section 2. The last column is the share of the time in which the \
monitor of `outrank` kept the predictions out, in percent.

{command(simulation([BURST], policies, '--scores', 'noisy:SIGMA', seeds=FEW_SEEDS))}

{tables}
The paper's predictors on lengths of Llama-3-70B:

{table(paper_header, paper_rows)}

`outrank` reads the spread of a prediction too, which "noisy" states truthfully, so it heeds a vague one less, down to next to nothing at a sigma of 4; at "random" the spread is a false \
claim, and what keeps it near FCFS is the monitor. What it still gains there comes from displacing requests that outlive their prediction. Tau-b alone does \
not tell the gain: errors among the short answers cost most, and the noise here is the same at all lengths, which a real ranker's is not."""


def worse(context: Context) -> str:
    """Section 9: what differs, what got worse, what the simulation cannot tell."""
    policies = ("ltr", LTR_UNPROMOTED, "outrank", "oracle-sjf")
    columns: list[tuple[str, Figure]] = [
        ("p99 E2E", metric("e2e_s", "p99")), ("p99 TTFT", metric("ttft_s", "p99")), ("mean TPOT", metric("tpot_s", "mean")),
        ("mean E2E", metric("e2e_s", "mean")), ("mean E2E, longest answers", long_e2e_s)]
    parts = []
    all_ratios: dict[str, list[list[float]]] = {policy: [] for policy in policies}
    for trace in context.traces:
        for name, result, load in (("the burst", context.burst[trace.name], None),
                                   (f"load {HIGH_LOAD:g}", context.online[trace.name], HIGH_LOAD)):
            shown = [policy for policy in policies if any(run["policy"] == policy for run in result.runs)]
            rows = []
            for policy in shown:
                values = [over_fcfs(result, policy, figure, load) for _, figure in columns]
                all_ratios[policy].append(values)
                rows.append([label(policy), *map(ratio, values)])
            parts.append(f"{trace.name}, {name}:\n\n{table(['', *(title for title, _ in columns)], rows)}\n")
    tables = "\n".join(parts)
    ranges = [[label(policy), *map(between, zip(*all_ratios[policy], strict=True))] for policy in policies]
    return f"""## 9. What differs, what got worse, and what this cannot tell

What the mean of s/token hides: ratios to FCFS from the runs of sections 2 and 3, medians of {SEEDS} seeds; above 1 is worse than FCFS. The \
longest answers are the last tenth by length, and where a limit cut more than a tenth of them, all tenths of that length.

{tables}
Over these traces, in the burst and at load {HIGH_LOAD:g}:

{table(['', *(title for title, _ in columns)], ranges)}

- **The longest answers pay** in every order that prefers short ones: p99 E2E and the longest answers are where to look for it. `ltr` adds its \
switches to that; `outrank` bounds how much later arrivals may take from them.
- **Promotion trades E2E and TPOT for TTFT.** It gives everyone a few tokens early and pauses them again: the p99 of TTFT falls, TPOT and the mean of E2E rise.
- **`outrank` does not improve p99 TTFT much.** Somebody has to be last, and it does not hide that behind a first token. Under overload it also \
leaves part of the mean to `ltr` on some traces (section 3), for the bound and the throughput.

Why our figures differ from the paper's:

- Another engine speed (section 1): absolute seconds do not compare, and steps are shorter, which makes promotion after 200 steps more frequent and dearer.
- Other traffic: other lengths, other tails, other tau-b. The gain grows with the spread of lengths and with tau-b.
- Another ranker: linear, on hashed words, where the paper reads prompts with OPT-125M; and each baseline here has the same ranker.
- `po` perceives with the ranker after 15 tokens of the answer itself; the paper asks the model and throws its words away.

Known limits of the simulation: step times are a roofline, not measurements of this card; there is no time for the scheduler itself, \
the tokenizer or the network; swaps stop the step they belong to and overlap with nothing; KV is counted in blocks without prefix \
caching; lengths do not depend on the batch; Poisson arrivals for 60 s are no steady state, least of all for heavy tails; prompts come \
from one trace at a time and repeat where it is small. The 70B rows of the paper's tables have no counterpart here."""


def summary(context: Context) -> str:
    """The head of the document."""
    def in_burst(policy: str, figure: Figure = MEAN) -> str:
        return between([over_fcfs(context.burst[trace.name], policy, figure) for trace in context.traces])

    paper_ltr = [ltr / fcfs for ltr, fcfs in zip(PAPER_BURST_MEAN["ltr"], PAPER_BURST_MEAN["fcfs"], strict=True)]
    high = [over_fcfs(context.online[trace.name], "outrank", MEAN, LOADS[-1])
            / over_fcfs(context.online[trace.name], "ltr", MEAN, LOADS[-1]) for trace in context.traces]
    p99_e2e = metric("e2e_s", "p99")
    rows = [
        ["`ltr` as published", between(paper_ltr), in_burst("ltr"), in_burst("ltr", p99_e2e)],
        ["`ltr`, no promotion", "-", in_burst(LTR_UNPROMOTED), in_burst(LTR_UNPROMOTED, p99_e2e)],
        ["`outrank`", "-", in_burst("outrank"), in_burst("outrank", p99_e2e)],
        ["`oracle-sjf`, perfect knowledge", "-", in_burst("oracle-sjf"), in_burst("oracle-sjf", p99_e2e)],
    ]
    return f"""# The paper's tables, made again

"Efficient LLM Scheduling by Learning to Rank" (Fu et al., NeurIPS 2024, arXiv 2408.15792), its figures beside ours. Everything of ours is \
simulated, on a profile that was not measured: **ratios to FCFS compare, seconds do not** (section 1). Made by `make paper`; TRACE and RANKER in the \
commands stand for a trace of section 1 (DATA for its folder) and the ranker trained on it.

In short: a burst of 2,000, over FCFS, from the lowest to the highest trace:

{table(['', 'mean s/token, paper', 'mean s/token, here', 'p99 E2E, here'], rows)}

At {LOADS[-1]:g} times capacity the mean s/token of `outrank` is {between(high)} of that of `ltr` (above 1: worse): sections 3 and 9."""


def document(context: Context) -> str:
    """Runs everything and writes it up."""
    train(context)
    context.burst = context.simulate_all(simulation([BURST], BURST_POLICIES))
    context.unmonitored = context.simulate_all(unmonitored_burst())
    context.online = context.simulate_all(simulation([f"load:{load:g}" for load in LOADS], ONLINE_POLICIES))
    sections = (summary, setup, burst, online, data_generation, classes, starvation, overhead, tau_against_latency, worse)
    return "\n\n".join(section(context).strip() for section in sections) + "\n"


def traces(data: Path | None) -> list[Trace]:
    """The traces of the document; all of them must be there."""
    own = "traces/smollm2-135m.jsonl.gz"
    found = []
    if data is not None:
        if not data.is_dir():
            raise PaperError(f"{data}: no such folder; --data names the one that holds length/*.jsonl.gz")
        for name, what in (
                ("instructionwild-llama32-3b", "chat, Llama-3.2-3B"),
                ("mmlupro-llama31-8b", "reasoning (exam questions), Llama-3.1-8B"),
                ("mixed-smollm2-135m-t1", "mixed, SmolLM2-135M at temperature 1, cut at 1,024 tokens; 3 samples a prompt")):
            file = f"length/{name}.jsonl.gz"
            found.append(Trace(name, f"DATA/{file}", data.resolve() / file, what))
    found.append(Trace("smollm2-135m", own, REPOSITORY / own, "mixed, SmolLM2-135M at temperature 0, cut at 384 tokens"))
    missing = [str(trace.file) for trace in found if not trace.file.is_file()]
    if missing:
        raise PaperError(f"missing: {', '.join(missing)}")
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--outrank", type=Path, default=REPOSITORY / "target/release/outrank", help="the program")
    parser.add_argument("--data", type=Path, help="folder with length/*.jsonl.gz [default: the project's own trace only]")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs/paper.md", help="the document")
    parser.add_argument("--threads", type=int, help="simulations at once [default: the number of cores]")
    return parser.parse_args()


def main() -> int:
    """Writes the document; 1 if it cannot."""
    args = arguments()
    try:
        if not args.outrank.is_file():
            raise PaperError(f"{args.outrank}: no such program; `make build` makes it")
        if not args.out.resolve().parent.is_dir():
            raise PaperError(f"{args.out}: its folder is missing")
        with tempfile.TemporaryDirectory(prefix="outrank-paper-") as folder:
            context = Context(args.outrank.resolve(), traces(args.data), Path(folder), args.threads)
            text = document(context)
        args.out.write_text(text, encoding="utf-8")
    except (PaperError, OSError) as error:
        print(f"paper: {error}", file=sys.stderr)
        return 1
    note(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
