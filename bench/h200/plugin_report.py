"""What run_plugin.sh measured, as tables; and its files as the two of the repository.

usage: python3 plugin_report.py RESULTS [--write DIR]

RESULTS is the unpacked results.tar.gz, or DIR. `--write` makes DIR/runs.jsonl.gz (a header line a run, with its figures and the
plug-in's status at its end, then a line for each of its requests) and DIR/steps.jsonl.gz (a line a step).
"""

import argparse
import gzip
import io
import json
import statistics
from collections import defaultdict
from pathlib import Path

MEANS = ("s_per_token_mean", "s_per_token_p90", "ttft_s_mean", "ttft_s_p99", "e2e_s_mean", "e2e_s_p99", "tpot_s_mean")
WAITING = ((0, 0), (1, 99), (100, 499), (500, 999), (1000, 2000))  # requests
FIRST_WARM = 9  # the number of the warm-up's run


def lines(path):
    """Objects of a file of JSON lines, plain or gzip; none if it is missing."""
    if not path.exists():
        return []
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        return [json.loads(line) for line in file]


def read_written(folder):
    """Runs as --write left them."""
    runs = {}
    for row in lines(folder / "runs.jsonl.gz"):
        name = f"{row['engine']}:{row['run']}"
        if "policy" in row:
            runs[name] = row | {"rows": [], "steps": []}
        else:
            runs[name]["rows"].append(row)
    for step in lines(folder / "steps.jsonl.gz"):
        runs[step["phase"]]["steps"].append(step)
    return list(runs.values())


def read(folder):
    """Runs in order: their figures, "status", "rows" and "steps", without warm-ups."""
    if (folder / "runs.jsonl.gz").exists():
        return read_written(folder)
    found = []
    for tag in sorted(path.stem.removeprefix("runs-") for path in folder.glob("runs-*.jsonl")):
        rows, steps, status, run = defaultdict(list), defaultdict(list), {}, None
        for row in lines(folder / f"requests-{tag}.jsonl"):
            rows[row["run"]].append(row)
        for step in lines(folder / f"steps-{tag}.jsonl"):
            if isinstance(step, dict):
                run, fields = step["run"], step["fields"]
                status[run] = step["status"]
            else:
                steps[run].append({"phase": f"{tag}:{run}"} | dict(zip(fields, step)))
        for about in lines(folder / f"runs-{tag}.jsonl"):
            run = about["run"]
            if int(run.split("#")[1]) < FIRST_WARM:
                found.append(about | {"engine": tag, "status": status.get(run), "rows": rows[run], "steps": steps[run]})
    return found


def kind(run):
    """What two runs have in common that may be compared."""
    text, nth = run["run"].split("#")
    return (run["engine"], text.split(":", 1)[1], nth)


def table(header, rows):
    """A Markdown table."""
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")


def figures(runs):
    """Every run of at least a minute's traffic."""
    table(("engine", "run", "requests", "s/token mean, p90", "TTFT mean, p99 (s)", "E2E mean, p99 (s)", "TPOT mean (ms)", "tokens/s"),
          [(run["engine"], f"`{run['run']}`", int(run["requests"]), f"{run['s_per_token_mean']:.4f}, {run['s_per_token_p90']:.4f}",
            f"{run['ttft_s_mean']:.2f}, {run['ttft_s_p99']:.2f}", f"{run['e2e_s_mean']:.2f}, {run['e2e_s_p99']:.2f}",
            f"{1e3 * run['tpot_s_mean']:.2f}", f"{run['tokens_per_s']:.0f}") for run in runs if "/" not in run["arrivals"]])  # fmt: skip


def ratios(runs):
    """Every run over the stock run of the same engine, arrivals, seats and KV."""
    stock = {kind(run): run for run in runs if run["policy"] == "stock"}
    rows = []
    for run in runs:
        base = stock.get(kind(run))
        if run["policy"] != "stock" and base and "/" not in run["arrivals"]:
            rows.append((run["engine"], f"`{run['run']}`", *(f"{run[key] / base[key]:.3f}" for key in (*MEANS, "tokens_per_s"))))
    table(("engine", "run / stock", "s/token mean", "p90", "TTFT mean", "p99", "E2E mean", "p99", "TPOT mean", "tokens/s"), rows)


def pooled(runs):
    """Outrank over stock where both engines ran both, each in the other's order: means of the two over means of the two."""
    both = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run["policy"] in ("stock", "outrank") and "/" not in run["arrivals"]:
            both[kind(run)[1]][run["policy"]].append(run)
    rows = []
    for arrivals, of in both.items():
        if len(of["stock"]) == len(of["outrank"]) == 2:
            means = [[statistics.mean(run[key] for run in of[policy]) for key in (*MEANS, "tokens_per_s")] for policy in ("outrank", "stock")]
            rows.append((arrivals, *(f"{a / b:.3f}" for a, b in zip(*means))))
    table(("both engines", "s/token mean", "p90", "TTFT mean", "p99", "E2E mean", "p99", "TPOT mean", "tokens/s"), rows)


def slices(runs):
    """The slices: outrank over stock, request by request at the same arrivals, and means over all of a policy."""
    pairs, pooled = defaultdict(dict), defaultdict(lambda: defaultdict(list))
    for run in runs:
        if "/" in run["arrivals"]:
            pairs[kind(run)][run["policy"]] = run
    rows, spread = [], defaultdict(list)
    for (engine, arrivals, nth), both in sorted(pairs.items()):
        if len(both) < 2:
            continue
        values = {}
        for policy, run in both.items():
            run["rows"].sort(key=lambda row: row["arrival_s"])
            tpot = [(row["e2e_s"] - row["ttft_s"]) / max(row["output_tokens"] - 1, 1) for row in run["rows"]]
            values[policy] = {"E2E": [row["e2e_s"] for row in run["rows"]], "TTFT": [row["ttft_s"] for row in run["rows"]], "TPOT": tpot}
            for name, of in values[policy].items():
                pooled[name][policy] += of
        cells = []
        for name in ("E2E", "TTFT", "TPOT"):
            a, b = values["outrank"][name], values["stock"][name]
            spread[name].append(statistics.mean(a) / statistics.mean(b))
            cells.append(f"{statistics.mean(a) / statistics.mean(b):.3f}, {statistics.median(x / y for x, y in zip(a, b)):.3f}")
        rows.append((engine, f"{arrivals}#{nth}", len(a), *cells))
    if not rows:
        return
    table(("engine", "slice", "requests", "E2E: ratio of means, median ratio", "TTFT", "TPOT"), rows)
    cells = []
    for name in ("E2E", "TTFT", "TPOT"):
        a, b = pooled[name]["outrank"], pooled[name]["stock"]
        median = statistics.median(x / y for x, y in zip(a, b))
        cells.append(f"{statistics.mean(a):.5f} / {statistics.mean(b):.5f} = {statistics.mean(a) / statistics.mean(b):.4f}, {median:.4f}")
    table(("requests of all slices", "E2E: means, their ratio, median ratio", "TTFT", "TPOT"), [(len(a), *cells)])
    of = (f"{min(it):.3f} **{statistics.median(it):.3f}** {max(it):.3f}" for it in spread.values())
    table(("ratios of the slices' means", "E2E: min median max", "TTFT", "TPOT"), [(len(rows), *of)])


def percentile(values, share):
    ordered = sorted(values)
    return ordered[int(share * (len(ordered) - 1))]


def overhead(runs):
    """Time in the plug-in per call of schedule(), by waiting requests and policy."""
    rows = []
    for policy in ("outrank", "ltr"):
        steps = [step for run in runs if run["policy"] == policy for step in run["steps"]]
        for low, high in WAITING:
            there = [step for step in steps if low <= step["waiting"] <= high]
            if len(there) > 20:
                own, vllm = ([step[key] for step in there] for key in ("plugin_us", "vllm_us"))
                rows.append((policy, f"{low}-{high}", len(there), *(f"{percentile(own, share):.0f}" for share in (0.5, 0.99)),
                             f"{percentile(vllm, 0.5):.0f}"))  # fmt: skip
    table(("policy", "waiting", "calls", "plug-in median (us)", "p99", "vLLM's own median"), rows)
    rows, share = [], defaultdict(lambda: [0, 0.0, 0.0])
    for run in runs:
        if run["policy"] not in ("stock", "oracle"):
            total = share[run["run"].split("#")[0]]
            for step in run["steps"]:
                if not step["idle"]:
                    total[0], total[1], total[2] = total[0] + 1, total[1] + step["plugin_us"] / 1e6, total[2] + step["took_s"]
    rows = [(f"`{name}`", count, f"{1e6 * own / count:.0f}", f"{100 * own / took:.2f} %") for name, (count, own, took) in share.items() if count]
    table(("run", "steps", "plug-in mean (us)", "of the steps' time"), rows)


def step_times(runs):
    """Steps without prefill at like batches, with and without the plug-in; tokens/s while all seats are taken and some wait."""
    by_size = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run["policy"] in ("stock", "outrank") and run["engine"] in "ab":
            for step in run["steps"]:
                if not step["prefill_tokens"] and not step["idle"]:
                    size = min(step["decodes"], 256) // 32 if step["decodes"] <= 256 else 9
                    by_size[size][run["policy"]].append(step["took_s"])
    rows = []
    for size, both in sorted(by_size.items()):
        if min(len(both["stock"]), len(both["outrank"])) > 50:
            a, b = statistics.median(both["outrank"]), statistics.median(both["stock"])
            name = f"{32 * size}-{32 * size + 31}" if size < 9 else "over 256"
            rows.append((name, len(both["outrank"]), len(both["stock"]), f"{1e3 * a:.3f}", f"{1e3 * b:.3f}", f"{a / b:.3f}"))
    table(("decodes", "steps outrank", "stock", "median ms outrank", "stock", "ratio"), rows)
    rows = []
    for run in runs:
        full = [step for step in run["steps"] if step["waiting"] > 0 and step["running"] >= run["seats"] - 2 and not step["idle"]]
        if len(full) > 200:
            tokens, took = sum(step["decodes"] + step["prefills"] for step in full), sum(step["took_s"] for step in full)
            rows.append((run["engine"], f"`{run['run']}`", len(full), f"{took:.1f}", f"{tokens / took:.0f}",
                         sum(step["prefill_tokens"] for step in full), (run["status"] or {}).get("seat_preemptions")))  # fmt: skip
    table(("engine", "run", "steps with all seats taken", "seconds", "tokens/s then", "prefill tokens", "seats taken over"), rows)


def write(runs, folder):
    """The files of the repository."""
    folder.mkdir(parents=True, exist_ok=True)

    def pack(name, records):
        with io.TextIOWrapper(gzip.GzipFile(folder / name, "wb", 9, mtime=0)) as out:
            out.writelines(json.dumps(record, separators=(",", ":")) + "\n" for record in records)

    of_runs, of_steps = [], []
    for run in runs:
        of_runs.append({key: value for key, value in run.items() if key not in ("rows", "steps")})
        of_runs += [{"engine": run["engine"]} | row for row in run["rows"]]
        of_steps += [step | {"took_s": round(step["took_s"], 5), "idle": bool(step["idle"])} for step in run["steps"]]
    pack("runs.jsonl.gz", of_runs)
    pack("steps.jsonl.gz", [{key: value for key, value in step.items() if key not in ("done_s", "preempted")} for step in of_steps])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    runs = read(args.results)
    for show in (figures, ratios, pooled, slices, overhead, step_times):
        show(runs)
    if args.write:
        write(runs, args.write)


if __name__ == "__main__":
    main()
