"""Every policy on held-out traffic, in the simulator: writes the tables of docs/simulated.md.

usage: python3 scripts/simulated.py --outrank target/release/outrank --data DIR --out docs/simulated.md

DIR has length/*.jsonl.gz (prompts with answer lengths) and arrivals/*.csv.gz (production arrivals). Rankers are trained on
the training split of each trace; every run takes held-out prompts only. Nothing of the data gets into the document.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TRACES = [("instructionwild-llama32-3b", "chat"), ("mmlupro-llama31-8b", "reasoning"),
          ("mixed-smollm2-135m-t1", "mixed"), ("alpaca-davinci003", "instructions")]
PROFILES = ["h200-llama3-8b", "a100-40g-llama3-8b"]
POLICIES = ["fcfs", "ltr", "class", "po", "mlfq", "hrrn", "tie", "boost", "sjf", "outrank", "oracle-sjf"]
CSVS = ["azure2023_conv", "azure2023_code", "mooncake_conversation", "servegen_deepseek_r1"]
LOADS = [0.5, 0.8, 0.95, 1.1, 1.5]
SEEDS = 5
# Settings that each policy is swept over, for the front of mean against tail.
SWEEPS = {
    "outrank": [f"outrank:short_share={share}:backlog_factor={factor}" for share in (0.03, 0.1, 0.2, 0.4) for factor in (1, 3, 10)],
    "tie": [f"tie:decay_interval_s={seconds}" for seconds in (3, 10, 30, 100)],
    "hrrn": ["hrrn"], "sjf": ["sjf"], "mlfq": [f"mlfq:base_quantum_s={s}" for s in (0.03, 0.3, 3)],
    "boost": [f"boost:gamma_per_s={gamma}" for gamma in (0.02, 0.1, 0.5, 2)],
    "ltr": [f"ltr:threshold_steps={steps}" for steps in (200, 1000, 5000)],
    "class": ["class:width_tokens=820", "class:width_tokens=100", "class:classes=geometric"],
}


def run(command):
    """Standard output of a command; ends the program with its error if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(str(part) for part in command)}\n{done.stderr}")
    return done.stdout


def simulate(args, trace, ranker, profile, arrivals, policies, extra=()):
    """Runs by (arrivals and load, seed, policy)."""
    command = [args.outrank, "simulate", "--trace", trace, "--held-out", "--profile", profile, "--seeds", SEEDS,
               "--duration-s", 90, "--policies", ",".join(policies), "--json", *extra]
    command += ["--ranker", ranker] if ranker else []
    for pattern in arrivals:
        command += ["--arrivals", pattern]
    runs = json.loads(run(command))["runs"]
    return {((it["arrivals"], it["load"]), it["seed"], it["policy"]): it for it in runs}


def ratios(runs, case, policy):
    """Median over the seeds of (s/token mean, TTFT p99, E2E p99, tokens/s) to fcfs."""
    def figures(it):
        metrics = it["metrics"]
        return [metrics["s_per_token"]["mean"], metrics["ttft_s"]["p99"], metrics["e2e_s"]["p99"], it["tokens_per_s"]]
    pairs = [[a / b for a, b in zip(figures(runs[case, seed, policy]), figures(runs[case, seed, "fcfs"]))]
             for seed in range(1, SEEDS + 1)]
    return [statistics.median(column) for column in zip(*pairs)]


def table(runs, policies, cases, names):
    """Markdown: a row a policy, a cell a case: s/token mean, TTFT p99, E2E p99 over fcfs."""
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for policy in policies:
        cells = []
        for case in cases:
            mean, ttft, e2e, _ = ratios(runs, case, policy)
            cells.append(f"{mean:.3f}, {ttft:.2f}, {e2e:.2f}")
        name = f"**{policy}**" if policy.startswith("outrank") else policy
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def section(args, out, trace, kind, ranker, profile):
    """Bursts, loads, the shipped ranker and production arrivals of one trace on one profile."""
    path = args.data / "length" / f"{trace}.jsonl.gz"
    patterns = ["burst:2000"] + [f"load:{load}" for load in LOADS]
    cases = [("burst:2000", None)] + [(f"load:{load}", load) for load in LOADS]
    runs = simulate(args, path, ranker, profile, patterns, POLICIES)
    tau = statistics.median(it["tau_b"] for it in runs.values())
    out.append(f"\n### {trace} ({kind}), {profile}; tau-b {tau:.3f}\n")
    out.append(table(runs, POLICIES[1:], cases, ["burst of 2,000"] + [f"load {load}" for load in LOADS]))
    cold = simulate(args, path, None, profile, patterns, ["fcfs", "outrank"])
    tau = statistics.median(it["tau_b"] for it in cold.values())
    out.append(f"With the shipped ranker, cold (tau-b {tau:.3f}):\n")
    out.append(table(cold, ["outrank"], cases, ["burst of 2,000"] + [f"load {load}" for load in LOADS]))
    csvs = [f"csv:{args.data / 'arrivals' / name}.csv.gz" for name in CSVS]
    policies = ["fcfs", "ltr", "hrrn", "tie", "sjf", "outrank", "oracle-sjf"]
    runs = simulate(args, path, ranker, profile, csvs, policies, ["--load", "0.9,1.2"])
    cases = [(f"csv:{name}.csv.gz", load) for name in CSVS for load in (0.9, 1.2)]
    out.append("Production arrivals, 90 s of each, scaled to 0.9 and 1.2 of capacity:\n")
    out.append(table(runs, policies[1:], cases, [f"{name} {load}" for name, load in
                                                 ((name, load) for name in CSVS for load in (0.9, 1.2))]))


def front(args, out, trace, ranker, profile):
    """Mean s/token against p99 TTFT at load 1.5, every policy over its settings; and who is beaten in both."""
    specs = [spec for sweep in SWEEPS.values() for spec in sweep]
    runs = simulate(args, args.data / "length" / f"{trace}.jsonl.gz", ranker, profile, ["load:1.5"],
                    ["fcfs", *specs, "outrank"])
    points = {spec: ratios(runs, ("load:1.5", 1.5), spec) for spec in [*specs, "outrank"]}
    out.append(f"\n### Front: {trace}, {profile}, load 1.5\n")
    out.append("| setting | s/token mean | TTFT p99 | E2E p99 | beaten in all three by |\n|---|---|---|---|---|\n")
    for spec, (mean, ttft, e2e, _) in sorted(points.items(), key=lambda item: item[1][0]):
        better = [other for other, figures in points.items()
                  if figures[0] < mean and figures[1] < ttft and figures[2] < e2e]
        out.append(f"| {spec} | {mean:.3f} | {ttft:.2f} | {e2e:.2f} | {better[0] if better else '-'} |\n")


def trust(args, out, trace, ranker, profile):
    """outrank with a random and an inverted ranker, over fcfs."""
    cells = []
    for scores in ("random", "inverted"):
        runs = simulate(args, args.data / "length" / f"{trace}.jsonl.gz", ranker, profile,
                        ["burst:2000", "load:1.1", "load:1.5"], ["fcfs", "outrank"], ["--scores", scores])
        cells += [f"{ratios(runs, case, 'outrank')[0]:.3f}" for case in
                  (("burst:2000", None), ("load:1.1", 1.1), ("load:1.5", 1.5))]
    out.append(f"| {trace}, {profile} | " + " | ".join(cells) + " |\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outrank", type=Path, required=True, help="the binary")
    parser.add_argument("--data", type=Path, required=True, help="folder with length/ and arrivals/")
    parser.add_argument("--out", type=Path, required=True, help="document to write")
    args = parser.parse_args()
    out = ["# Every policy in the simulator\n\nMade by `make simulated DATA=DIR`. Held-out prompts, a ranker trained on the other "
           f"80 % of each trace, {SEEDS} seeds (medians), Poisson arrivals for 90 s, then drained. A cell: mean s/token, p99 TTFT, "
           "p99 E2E, each over that of `fcfs` on the same requests; above 1 is worse.\n"]
    with tempfile.TemporaryDirectory() as folder:
        rankers = {}
        for trace, _ in TRACES:
            rankers[trace] = Path(folder) / f"{trace}.outrank"
            run([args.outrank, "train", "--trace", args.data / "length" / f"{trace}.jsonl.gz", "--out", rankers[trace]])
        for profile in PROFILES:
            for trace, kind in TRACES:
                print(f"simulated: {trace}, {profile}", file=sys.stderr)
                section(args, out, trace, kind, rankers[trace], profile)
        for trace, _ in TRACES[:3]:
            front(args, out, trace, rankers[trace], PROFILES[0])
        out.append("\n## A ranker that is wrong\n\nMean s/token of `outrank` over `fcfs`, whole runs, the time before the monitor's "
                   "first verdict included:\n\n| | random: burst | load 1.1 | load 1.5 | inverted: burst | load 1.1 | load 1.5 |\n"
                   "|---|---|---|---|---|---|---|\n")
        for profile in PROFILES:
            for trace, _ in TRACES:
                trust(args, out, trace, rankers[trace], profile)
    args.out.write_text("\n".join(out).replace("|\n\n|", "|\n|"), encoding="utf-8")


if __name__ == "__main__":
    main()
