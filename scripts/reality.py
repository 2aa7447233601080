"""The simulator against reality: replays measured runs in `outrank simulate` and compares latencies.

usage: python3 scripts/reality.py --outrank target/release/outrank --runs results/h200/reality.jsonl.gz \
           --profile h200-llama3-8b [--policies fcfs=fcfs,rank=sjf,oracle=oracle-sjf]

With --steps, a profile is fitted to the steps of each run itself (--profile gives seats and memory): that takes the speed
of the machine during the run out of the comparison and leaves the scheduler and the form of the cost.

A file of runs has a header line for each run and a line for each request (results/h200/README.md). Requests reach the
simulated scheduler when they reached the real one (`queued_s`), with the same tokens and scores. Runs of the plug-in
(results/h200/plugin) say nothing of a request but its place in the run: its prompt and its tokens are taken from --requests, as the
run took them (bench/h200/workload.py), and --ranker scores the prompt as the plug-in did. With --learn it also learns from the
answers of each run under `outrank`, as the plug-in did, from the same start.
"""
import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench/h200"))
import workload  # noqa: E402

CONTEXT = 4096  # tokens; `max_model_len` of the plug-in's runs
PROFILES = Path(__file__).resolve().parent.parent / "crates/sim/profiles"


def read_runs(path):
    """Runs by name: (header, requests in order of arrival at the scheduler)."""
    headers, requests = {}, {}
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            name = f"{row['engine']}:{row['run']}" if "engine" in row else row["run"]
            if "policy" in row:
                headers[name], requests[name] = row, []
            else:
                requests[name].append(row)
    for rows in requests.values():
        rows.sort(key=lambda row: row["queued_s"])
    return {name: (headers[name], requests[name]) for name in headers}


def with_requests(runs, known):
    """Runs of the plug-in, with what their requests were."""
    for name, (header, requests) in runs.items():
        nth, cap = int(name.split("#")[1]), workload.SLICE_CAP if "/" in header["arrivals"] else CONTEXT
        for row in requests:
            what = workload.request(known, nth, row["index"])
            row |= {"prompt": what["prompt"], "prompt_tokens": len(what["ids"]), "output_tokens": min(what["output"], cap)}
    return runs


def with_memory(profile, blocks, folder):
    """A profile, TOML or built in, with so many KV blocks, of which vLLM keeps one as its null block."""
    path = profile if Path(profile).exists() else PROFILES / f"{profile}.toml"
    text = re.sub(r"(?m)^kv_blocks = .*", f"kv_blocks = {blocks - 1}", Path(path).read_text())
    limited = Path(folder, "limited.toml")
    limited.write_text(text)
    return limited


def simulate(args, profile, header, requests):
    """Answers of the simulator: (s/token, TTFT, E2E) of each request, in seconds since it reached the scheduler."""
    with tempfile.TemporaryDirectory() as folder:
        trace, answers = Path(folder, "trace.jsonl"), Path(folder, "answers.jsonl")
        with open(trace, "w") as out:
            for row in requests:
                record = {"prompt": row.get("prompt", "synthetic"), "prompt_tokens": row["prompt_tokens"],
                          "output_tokens": row["output_tokens"], "arrival_s": max(0.0, row["queued_s"])}
                if not args.requests:
                    record["score"] = row["score"] + 1.0
                out.write(json.dumps(record) + "\n")
        if header.get("kv_blocks"):
            profile = with_memory(profile, header["kv_blocks"], folder)
        command = [args.outrank, "simulate", "--trace", trace, "--arrivals", "trace", "--duration-s", "1e9", "--answers", answers,
                   "--policies", args.of[header["policy"]], "--profile", profile, "--seats", str(header["seats"]), "--json"]
        command += ["--scores", "ranker", "--ranker", args.ranker] if args.requests else ["--scores", "trace"]
        command += ["--learn", args.learn] if args.learn and header["policy"] == "outrank" else []
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"outrank simulate failed:\n{run.stderr}")
        rows = [json.loads(line) for line in open(answers)]
    return [(row["e2e_s"] / row["output_tokens"], row["ttft_s"], row["e2e_s"]) for row in rows]


def measured(requests):
    """The same of the real run."""
    waits = [row["queued_s"] - row["arrival_s"] for row in requests]
    return [((row["e2e_s"] - wait) / row["output_tokens"], row["ttft_s"] - wait, row["e2e_s"] - wait)
            for row, wait in zip(requests, waits)]


def fitted(outrank, base, steps, run, folder):
    """A profile fitted to the steps of one run alone."""
    log, profile = Path(folder, "steps.jsonl"), Path(folder, f"{run.replace('/', '-')}.toml")
    with gzip.open(steps, "rt") as lines, open(log, "w") as out:
        out.writelines(line for line in lines if json.loads(line)["phase"] == run)
    command = [outrank, "trace", "fit-profile", "--log", log, "--base", base, "--name", run, "--out", profile]
    fit = subprocess.run(command, capture_output=True, text=True)
    if fit.returncode:
        sys.exit(f"outrank trace fit-profile failed:\n{fit.stderr}")
    return profile


def mean(values):
    return sum(values) / len(values)


def p90(values):
    ordered = sorted(values)
    at = 0.9 * (len(ordered) - 1)
    low = int(at)
    return ordered[low] + (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]) * (at - low)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outrank", required=True, help="the binary")
    parser.add_argument("--runs", required=True, type=Path, help="measured runs, JSON lines")
    parser.add_argument("--profile", required=True, help="profile of the engine")
    parser.add_argument("--policies", default="fcfs=fcfs,rank=sjf,oracle=oracle-sjf",
                        help="policy of a run = policy of the simulator")
    parser.add_argument("--steps", type=Path, help="step log of the runs, to fit each run's own profile")
    parser.add_argument("--only", default="", help="only runs whose name contains one of these, comma-separated")
    parser.add_argument("--requests", type=Path, help="the requests of runs of the plug-in, JSON lines, gzip")
    parser.add_argument("--ranker", help="the ranker that scored them")
    parser.add_argument("--learn", choices=("ended", "running"), help="what the plug-in learned from")
    args = parser.parse_args()
    args.of = dict(pair.split("=") for pair in args.policies.split(","))
    print("| run | requests | s/token mean, p90 | TTFT mean | E2E mean, p90 | simulated / measured: s/token | E2E mean | E2E p90 |")
    print("|---|---|---|---|---|---|---|---|")
    runs = {name: run for name, run in read_runs(args.runs).items()
            if any(part in name for part in args.only.split(",")) and run[0]["policy"] in args.of}
    if args.requests:
        runs = with_requests(runs, workload.load(args.requests, CONTEXT))
    for name, (header, requests) in runs.items():
        real = list(zip(*measured(requests)))
        with tempfile.TemporaryDirectory() as folder:
            profile = fitted(args.outrank, args.profile, args.steps, name, folder) if args.steps else args.profile
            ours = list(zip(*simulate(args, profile, header, requests)))
        figures = [mean(real[0]), p90(real[0]), mean(real[1]), mean(real[2]), p90(real[2])]
        ratios = [mean(ours[0]) / figures[0], p90(ours[0]) / figures[1], mean(ours[2]) / figures[3],
                  p90(ours[2]) / figures[4]]
        print(f"| {name} | {len(requests)} | {figures[0]:.4f}, {figures[1]:.4f} | {figures[2]:.2f} |"
              f" {figures[3]:.2f}, {figures[4]:.2f} | {ratios[0]:.3f}, p90 {ratios[1]:.3f} | {ratios[2]:.3f} | {ratios[3]:.3f} |")


if __name__ == "__main__":
    main()
