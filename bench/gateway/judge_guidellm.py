"""guidellm as a judge of the gateway; started by guidellm.sh."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import harness

RUNS = [("concurrent", "8"), ("concurrent", "64"), ("poisson", "20")]


def run(args, url, kind, rate, folder):
    report = Path(folder) / "report.json"
    command = [args.guidellm, "benchmark", "run", "--target", url, "--model", "mock", "--processor", args.tokenizer, "--rate-type", kind, "--rate", rate,
               "--max-seconds", args.seconds, "--data", "prompt_tokens=64,output_tokens=32", "--disable-progress", "--disable-console-outputs",
               "--output-path", report]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env, timeout=args.seconds * 4 + 120)
    if done.returncode or not report.exists():
        raise SystemExit(f"guidellm failed:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    return json.loads(report.read_text())["benchmarks"][0]


def row(found):
    totals = found.get("request_totals") or found["run_stats"]["requests_made"]
    metric = lambda name, key: found["metrics"][name]["successful"][key]
    at = lambda name, p: found["metrics"][name]["successful"]["percentiles"][p]
    return {"successful": totals["successful"], "errored": totals["errored"], "incomplete": totals["incomplete"],
            "requests_per_s": metric("requests_per_second", "mean"), "ttft_p50_ms": at("time_to_first_token_ms", "p50"),
            "ttft_p99_ms": at("time_to_first_token_ms", "p99"), "itl_p50_ms": at("inter_token_latency_ms", "p50"), "itl_p99_ms": at("inter_token_latency_ms", "p99")}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outrank", type=Path)
    parser.add_argument("--guidellm", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=harness.ROOT / "results/gateway")
    args = parser.parse_args()
    lines = ["| way | load | answered | errors | requests/s | TTFT p50, p99, ms | ITL p50, p99, ms |\n|---|---|---|---|---|---|---|"]
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as folder, harness.servers() as started:
        upstream = harness.mock(started, folder, ttft_ms=30, itl_ms=5)
        ways = {"direct": upstream}
        if args.outrank and str(args.outrank) != "none":
            for mode in ("hold", "stamp"):
                ways[f"outrank {mode}"] = harness.outrank(started, folder, args.outrank, [upstream], mode, body=harness.chat())
        for kind, rate in RUNS:
            for name, server in ways.items():
                one = {"way": name, "load": f"{kind} {rate}", **row(run(args, server.url, kind, rate, folder))}
                rows.append(one)
                failed += bool(one["errored"])
                lines.append(f"| {name} | {one['load']} | {one['successful']} | {one['errored']} | {one['requests_per_s']:.1f} | {one['ttft_p50_ms']:.1f}, "
                             f"{one['ttft_p99_ms']:.1f} | {one['itl_p50_ms']:.2f}, {one['itl_p99_ms']:.2f} |")
                harness.say(lines[-1])
    facts = harness.binary_facts(args.outrank) if len(ways) > 1 else {"version": "-", "commit": "-"}
    head = (f"# guidellm 0.3.1 before the gateway\n\nCommand: `make judge-guidellm`. {facts['version']} at {facts['commit']}; {args.seconds:g} s a line, one run each, "
            f"{os.cpu_count()} shared cores; the mock sends its first token after 30 ms and one each 5 ms.\n\n")
    harness.write(args.out, "guidellm", {"facts": facts, "rows": rows}, head + "\n".join(lines) + "\n")
    print(f"guidellm: {len(rows) - failed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
