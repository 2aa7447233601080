"""The simulator against the embedded engine: the same requests and arrivals on both, side by side.

usage: python3 scripts/reality_cpu.py --outrank target/release/outrank --trace traces/smollm2-135m.jsonl.gz --out results/cpu

Serves held-out prompts with their recorded lengths under fcfs, outrank and oracle-sjf, in a burst and at two Poisson rates
(about 0.8 and 1.2 of capacity on two cores), logs the engine's steps, fits the profile `cpu-smollm2` to them, simulates
the same requests, and prints the ratios. Takes six minutes on an otherwise idle machine.
"""
import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

POLICIES = "fcfs,outrank,oracle-sjf"
CASES = [("burst-48", ["--arrivals", "burst:48"]), ("poisson-1.6", ["--arrivals", "poisson:1.6", "--duration-s", "30"]),
         ("poisson-2.4", ["--arrivals", "poisson:2.4", "--duration-s", "25"])]
LIMIT = ["--max-tokens", "128"]


def run(command):
    """Standard output of a command; ends the program with its error if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(str(part) for part in command)}\n{done.stderr}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outrank", type=Path, required=True, help="the binary")
    parser.add_argument("--trace", type=Path, required=True, help="trace with lengths of the served model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the measured runs and the step log")
    parser.add_argument("--profile", type=Path, default=Path("crates/sim/profiles/cpu-smollm2.toml"), help="profile to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        ranker, steps, profile = (Path(folder, name) for name in ("own.outrank", "steps.jsonl", "cpu-smollm2.toml"))
        run([args.outrank, "train", "--trace", args.trace, "--out", ranker])
        common = ["--trace", args.trace, "--held-out", "--ranker", ranker, "--policies", POLICIES, *LIMIT, "--json"]
        measured = {}
        for name, arrivals in CASES:
            print(f"serving: {name}", file=sys.stderr)
            text = run([args.outrank, "bench", *common, *arrivals, "--seats", "8", "--lengths", "recorded",
                        "--step-log", steps])
            measured[name] = json.loads(text)
            (args.out / f"{name}.json").write_text(text)
        with open(steps, "rb") as log, gzip.GzipFile(args.out / "steps.jsonl.gz", "wb", mtime=0) as out:
            out.write(log.read())
        run([args.outrank, "trace", "fit-profile", "--log", steps, "--base", "cpu-smollm2", "--name", "cpu-smollm2",
             "--source", "Measured: the embedded engine, SmolLM2-135M as Q8_0 on two cores of a shared machine, 8 seats "
             "(results/cpu)", "--out", profile])
        args.profile.write_text(profile.read_text())
        print("| run | policy | measured: s/token, E2E mean, E2E p90 | simulated / measured: s/token mean, p90 | E2E mean, p90 | tokens/s |")
        print("|---|---|---|---|---|---|")
        for name, arrivals in CASES:
            simulated = json.loads(run([args.outrank, "simulate", *common, *arrivals, "--profile", profile]))
            for real, ours in zip(measured[name]["runs"], simulated["runs"]):
                assert real["output_tokens"] == ours["output_tokens"], "the simulator did not replay the same requests"
                m, s = real["metrics"], ours["metrics"]
                ratio = lambda metric, figure: f"{s[metric][figure] / m[metric][figure]:.2f}"
                print(f"| {name} | {real['policy']} | {m['s_per_token']['mean']:.3f}, {m['e2e_s']['mean']:.2f}, {m['e2e_s']['p90']:.2f} |"
                      f" {ratio('s_per_token', 'mean')}, {ratio('s_per_token', 'p90')} | {ratio('e2e_s', 'mean')}, {ratio('e2e_s', 'p90')} |"
                      f" {ours['tokens_per_s'] / real['tokens_per_s']:.2f} |")


if __name__ == "__main__":
    main()
