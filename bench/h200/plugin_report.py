"""What run_plugin.sh measured, as tables; and its files as the two of the repository.

usage: python3 plugin_report.py RESULTS [--write DIR]

RESULTS is the unpacked results.tar.gz, or DIR. `--write` makes DIR/runs.jsonl.gz (a header line a run, with its figures and the
plug-in's status at its end, then a line for each of its requests) and DIR/steps.jsonl.gz (a line a step). What a request was is not
written, its prompt, its length and its place in the data: workload.py tells, from the data.
"""

import argparse
import bisect
import gzip
import io
import json
import random
import statistics
from collections import defaultdict
from pathlib import Path

MEANS = ("s_per_token_mean", "s_per_token_p90", "ttft_s_mean", "ttft_s_p99", "e2e_s_mean", "e2e_s_p99", "tpot_s_mean")
WAITING = ((0, 0), (1, 99), (100, 499), (500, 999), (1000, 2000))  # requests
FIRST_WARM = 9  # the number of the warm-up's run
OF_REQUEST = ("index", "arrival_s", "queued_s", "ttft_s", "e2e_s")  # what is written of a request
RESAMPLED = 500  # times that blocks of steps are drawn anew for an interval


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
                about |= {"engine": tag, "status": status.get(run)} | in_steps(about, rows[run], steps[run])
                found.append(about | {"rows": rows[run], "steps": steps[run]})
    return found


def in_steps(about, rows, steps):
    """Steps of the engine that ended between a request's arrival and its first token, and its end: means over the requests."""
    if not steps:
        return {}
    done_s = [step["done_s"] - about["started_s"] for step in steps]
    between = {"steps_ttft_mean": "ttft_s", "steps_e2e_mean": "e2e_s"}
    counts = {name: [bisect.bisect(done_s, row["arrival_s"] + row[key]) - bisect.bisect(done_s, row["arrival_s"]) for row in rows]
              for name, key in between.items()}  # fmt: skip
    return {name: round(statistics.mean(of), 3) for name, of in counts.items()}


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
        if run["policy"] not in ("stock", "vllm") and base and "/" not in run["arrivals"]:
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
    pairs = defaultdict(dict)
    for run in runs:
        if "/" in run["arrivals"] and run["policy"] in ("stock", "outrank"):
            pairs[kind(run)][run["policy"]] = run
    by_load = defaultdict(list)
    for (engine, arrivals, nth), both in sorted(pairs.items()):
        if len(both) == 2:
            by_load[arrivals].append((f"{engine} #{nth}", both["outrank"], both["stock"]))
    for arrivals, of in by_load.items():
        rows = [(name, len(ours["rows"]), *compared(ours, stock)) for name, ours, stock in of]
        table((f"slices of {arrivals}", "requests", "E2E: ratio of means, median ratio", "TTFT", "TPOT", "steps to the end, ratio of means"), rows)
        means = [sum(run[name] * run["requests"] for run in side) / sum(run["requests"] for run in side)
                 for name in ("e2e_s_mean", "ttft_s_mean", "tpot_s_mean") for side in (list(zip(*of))[1], list(zip(*of))[2])]  # fmt: skip
        cells = (f"{a:.5f} / {b:.5f} = {a / b:.4f}" for a, b in zip(means[::2], means[1::2]))
        table(("requests of all", "E2E: means, their ratio", "TTFT", "TPOT"), [(sum(row[1] for row in rows), *cells)])


def compared(ours, stock):
    """Cells of a pair of slices; that a request's tokens are the same in both drops them from the ratios of its TPOT."""
    a, b = (sorted(run["rows"], key=lambda row: row["index"]) for run in (ours, stock))
    times = {"e2e_s_mean": lambda row: row["e2e_s"], "ttft_s_mean": lambda row: row["ttft_s"], "tpot_s_mean": lambda row: row["e2e_s"] - row["ttft_s"]}
    for name, time in times.items():
        median = statistics.median(time(x) / time(y) for x, y in zip(a, b) if time(y) > 0)
        yield f"{ours[name] / stock[name]:.3f}, {median:.3f}"
    steps = "steps_e2e_mean"
    yield f"{ours[steps] / stock[steps]:.4f}" if steps in ours and steps in stock else ""


def flips(runs):
    """Steps with the plug-in over steps without it in runs where the two take turns, with 95 % intervals from blocks drawn anew."""
    measures = {
        "median": statistics.median,
        "mean": statistics.mean,
        "mean without the slowest tenth": lambda took: statistics.mean(sorted(took)[: int(0.9 * len(took))]),
    }
    rows = []
    for run in runs:
        if run["policy"] != "flip":
            continue
        for name, only in (("all", lambda step: True), ("without prefill", lambda step: not step["prefill_tokens"])):
            blocks = [[step["took_s"] for step in block if only(step) and not step["idle"]] for block in in_turns(run["steps"])]
            if not any(blocks):
                continue
            cells = (interval(blocks, measure) for measure in measures.values())
            rows.append((run["engine"], f"`{run['run']}`", name, sum(map(len, blocks)), *cells))
    if rows:
        table(("engine", "run", "steps", "number", *(f"{name} with / without" for name in measures)), rows)


def in_turns(steps):
    """Steps in blocks: with the plug-in, without, with, ... or the other way round; a last one without its partner is left out."""
    blocks = []
    for step in steps:
        if not blocks or blocks[-1][-1]["plugin"] != step["plugin"]:
            blocks.append([])
        blocks[-1].append(step)
    return blocks[int(not blocks[0][0]["plugin"]) :]


def interval(blocks, measure):
    """Ratio of a measure over blocks with the plug-in to that over blocks without, and where 95 % of resampled ones lie."""
    pairs = list(zip(blocks[::2], blocks[1::2]))

    def ratio(pairs):
        return measure([took for on, _ in pairs for took in on]) / measure([took for _, off in pairs for took in off])

    rng = random.Random(1)
    drawn = sorted(ratio(rng.choices(pairs, k=len(pairs))) for _ in range(RESAMPLED))
    return f"{ratio(pairs):.4f} ({drawn[RESAMPLED // 40]:.4f} to {drawn[-RESAMPLED // 40]:.4f})"


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
        if run["policy"] not in ("stock", "vllm", "oracle", "flip"):
            total = share[run["run"].split("#")[0]]
            for step in run["steps"]:
                if not step["idle"]:
                    own_s = (step["plugin_us"] + step.get("hooks_us", 0.0)) / 1e6
                    total[0], total[1], total[2] = total[0] + 1, total[1] + own_s, total[2] + step["took_s"]
    rows = [(f"`{name}`", count, f"{1e6 * own / count:.0f}", f"{100 * own / took:.2f} %") for name, (count, own, took) in share.items() if count]
    table(("run", "steps", "plug-in mean (us)", "of the steps' time"), rows)


def step_times(runs):
    """Steps without prefill at like batches, with and without the plug-in; tokens/s while all seats are taken and some wait."""
    by_size = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run["policy"] in ("stock", "outrank") and run["engine"] != "tp2":
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
        rows = sorted(run["rows"], key=lambda row: row["index"])
        of_runs += [{"engine": run["engine"], "run": run["run"]} | {key: row[key] for key in OF_REQUEST} for row in rows]
        of_steps += [step | {"took_s": round(step["took_s"], 5), "idle": bool(step["idle"])} for step in run["steps"]]
    pack("runs.jsonl.gz", of_runs)
    pack("steps.jsonl.gz", [{key: value for key, value in step.items() if key not in ("done_s", "preempted")} for step in of_steps])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    runs = read(args.results)
    for show in (figures, ratios, pooled, slices, flips, overhead, step_times):
        show(runs)
    if args.write:
        write(runs, args.write)


if __name__ == "__main__":
    main()
