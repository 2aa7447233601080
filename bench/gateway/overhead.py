"""What a gateway costs: outrank beside vllm-router and sglang-router before the same mock server, in one run.

usage: bench/gateway/overhead.sh [--outrank BIN] [--rounds N] [--slice-s S] [--out FOLDER]

Each round visits every case, and within a case every way to the mock (directly, and through each gateway) for a few seconds;
the order turns by one each round, so that what drifts with time meets each as often. Nothing is pinned to a core: mock,
gateway and client share them, which is the same for all. Added latency is that of the gateway less that of the direct way
in the same round. CPU is user and system time of the gateway's process a request. All figures: least, median, greatest of
the rounds.

A slice beside which something else took the cores is measured again. What others take is all CPU time less that of these processes.

Outrank scores no more than its budget of CPU time allows: for which share of the requests a score was made is counted by its own
metrics, from the end of the warm-up on. By then a flood has spent what the budget had saved, so that what is saved between slices
flatters neither the rate nor the share.
"""
import argparse
import tempfile
import threading
import time
from pathlib import Path

import harness
from harness import load, say, show, spread

# Requests a second of the open loops: a fraction of what the slowest gateway serves, and as many as a large fleet is sent.
RATE = 400
BUSY_RATES = (2000, 5000)
STREAM_RATE = 100
WARM_UP_S = 5.0
# A slice beside which other processes took more of the cores than this is measured again, at most so often.
MAX_OTHERS_CORES = 0.1
MAX_REPEATS = 10
QUIET_WAIT_S = 300
# Metrics are read so long before the end of the warm-up, so that reading them is not measured.
READ_S = 0.1
CASES = {
    "max": ("Most requests/s, whole answers of 1 token, 32 at a time",
            dict(kind="closed", connections=32, max_tokens=1)),
    "max-stream": ("Most requests/s, streams of 16 tokens, 32 at a time",
                   dict(kind="closed", connections=32, max_tokens=16, stream=True)),
    "open": (f"Latency at {RATE} requests/s, whole answers of 1 token",
             dict(kind="open", rate=RATE, max_tokens=1)),
    **{f"open-{rate}": (f"Latency at {rate:,} requests/s, whole answers of 1 token", dict(kind="open", rate=rate, max_tokens=1))
       for rate in BUSY_RATES},
    "open-stream": (f"Latency at {STREAM_RATE} requests/s, streams of 16 tokens",
                    dict(kind="open", rate=STREAM_RATE, max_tokens=16, stream=True)),
}


def measure(case, way, seconds, started):
    """One slice, again if something else ran beside it: whether it does says nothing of what is measured."""
    for repeat in range(MAX_REPEATS + 1):
        others = harness.Others(started)
        row = measure_once(case, way, seconds)
        row |= {"others_cores": others.cores(), "repeats": repeat}
        if row["others_cores"] <= MAX_OTHERS_CORES:
            break
        harness.wait_for_quiet(started, MAX_OTHERS_CORES, QUIET_WAIT_S)
    return row


def measure_once(case, way, seconds):
    flags = dict(CASES[case][1])
    pids = [] if way.name == "direct" else [way.pid]
    before, counted = harness.load_average(), {}
    reader = threading.Timer(WARM_UP_S - READ_S, lambda: counted.update(counts(way)))
    reader.start()
    result = load(url=way.url, duration_s=seconds, warm_up_s=WARM_UP_S, pid=pids, **flags)
    reader.join()
    usage = result["usage"].get(str(way.pid), {})
    answered = max(result["ok"], 1)
    row = {"way": way.name, "case": case, "rate": result["rate_per_s"], "ok": result["ok"], "errors": result["errors"],
           "statuses": result["statuses"], "load_before": before, "rss_kib": usage.get("rss_kib"),
           "cpu_us": usage["cpu_s"] / answered * 1e6 if usage else None, "unanswered": result.get("unanswered", 0)}
    if counted:
        row["scored"] = scored(counted, counts(way))
    for name in ("e2e_ms", "ttft_ms", "transit_ms"):
        if result[name]:
            row[name] = {key: result[name][key] for key in ("p50", "p99", "mean")}
    return row


def counts(way):
    """Requests that have ended, and scores made, of an outrank; nothing of others."""
    if not way.name.startswith("outrank"):
        return {}
    text = harness.ask(way.port, "/metrics")[2]
    total = lambda name: sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))
    return {"requests": total("outrank_requests_total{"), "scores": total("outrank_score_latency_seconds_count")}


def scored(before, after):
    """Scores a request, between two counts."""
    requests = after["requests"] - before["requests"]
    return (after["scores"] - before["scores"]) / requests if requests else None


class Direct:
    name = "direct"

    def __init__(self, upstream):
        self.url, self.pid = upstream.url, upstream.pid


def rounds(cases, ways, count, seconds, started):
    rows = []
    for number in range(count):
        for case in cases:
            order = ways[number % len(ways):] + ways[:number % len(ways)]
            for way in order:
                rows.append({"round": number, **measure(case, way, seconds, started)})
            found = {row["way"]: row for row in rows if row["round"] == number and row["case"] == case}
            say(f"round {number + 1}/{count} {case}: " + ", ".join(
                f"{way.name} {found[way.name]['rate']:.0f}/s p50 {found[way.name]['e2e_ms']['p50']:.2f} p99 {found[way.name]['e2e_ms']['p99']:.2f}"
                for way in ways if "e2e_ms" in found[way.name]))
    return rows


def by_round(rows, case, way, value):
    return {row["round"]: value(row) for row in rows if row["case"] == case and row["way"] == way}


def added(rows, case, way, name, key):
    """Milliseconds more than directly, by round."""
    value = lambda row: row[name][key] if name in row else None
    here, there = by_round(rows, case, way, value), by_round(rows, case, "direct", value)
    return [here[r] - there[r] for r in here if here[r] is not None and there.get(r) is not None]


def ratio(rows, case, way, other, value):
    here, there = by_round(rows, case, way, value), by_round(rows, case, other, value)
    return spread([here[r] / there[r] for r in here if here[r] and there.get(r)])


def summary(rows, ways, rivals, ours):
    result = {}
    for case in dict.fromkeys(row["case"] for row in rows):
        result[case] = {}
        for way in ways:
            own = lambda value: spread(by_round(rows, case, way, value).values())
            line = {"rate": own(lambda row: row["rate"]), "cpu_us": own(lambda row: row["cpu_us"]),
                    "scored_percent": own(lambda row: row["scored"] * 100 if row.get("scored") is not None else None),
                    "rss_mib": own(lambda row: row["rss_kib"] / 1024 if row["rss_kib"] else None),
                    "failed": sum(sum(row["errors"].values()) + row["ok"] - row["statuses"].get("200", 0) + row["unanswered"]
                                  + sum(n for s, n in row["statuses"].items() if s not in ("0", "200"))
                                  for row in rows if row["case"] == case and row["way"] == way)}
            for name in ("e2e_ms", "ttft_ms", "transit_ms"):
                for key in ("p50", "p99"):
                    line[f"{name}_{key}"] = own(lambda row: row[name][key] if name in row else None)
                    if way != "direct":
                        line[f"added_{name}_{key}"] = spread(added(rows, case, way, name, key))
            if way in ours:
                for rival in rivals:
                    line[f"rate_to_{rival}"] = ratio(rows, case, way, rival, lambda row: row["rate"])
                    line[f"cpu_to_{rival}"] = ratio(rows, case, way, rival, lambda row: row["cpu_us"])
                    for key in ("p50", "p99"):
                        line[f"e2e_ms_{key}_to_{rival}"] = ratio(
                            rows, case, way, rival, lambda row: row["e2e_ms"][key] if "e2e_ms" in row else None)
            result[case][way] = line
    return result


def table(facts, result, ways, rivals, ours):
    out = [f"# Overhead of gateways before a mock server\n", harness_head(facts)]
    for case, lines in result.items():
        title, flags = CASES[case]
        closed = flags["kind"] == "closed"
        out.append(f"\n## {title}\n")
        if closed:
            out.append("| way | requests/s | CPU a request, µs | scored, % | memory, MiB | failed |\n|---|---|---|---|---|---|")
        else:
            out.append("| way | E2E p50, ms | E2E p99, ms | added p50, ms | added p99, ms | added TTFT p50, ms | CPU a request, µs | scored, % | failed |\n"
                       "|---|---|---|---|---|---|---|---|---|")
        for way in ways:
            line = lines[way]
            if closed:
                out.append(f"| {way} | {show(line['rate'], 0)} | {show(line['cpu_us'], 1)} | {show(line['scored_percent'], 1)} | "
                           f"{show(line['rss_mib'], 0)} | {line['failed']} |")
            else:
                extra = [show(line.get(f"added_{name}"), 3) for name in ("e2e_ms_p50", "e2e_ms_p99", "ttft_ms_p50")]
                out.append(f"| {way} | {show(line['e2e_ms_p50'], 3)} | {show(line['e2e_ms_p99'], 2)} | {' | '.join(extra)} | "
                           f"{show(line['cpu_us'], 1)} | {show(line['scored_percent'], 1)} | {line['failed']} |")
        for way in ours:
            for rival in rivals:
                line = lines[way]
                what = f"requests/s {show(line[f'rate_to_{rival}'])}" if closed else ", ".join(
                    f"E2E {key} {show(line[f'e2e_ms_{key}_to_{rival}'])}" for key in ("p50", "p99"))
                out.append(f"\n{way} to {rival}, paired by round: {what}, CPU a request {show(line[f'cpu_to_{rival}'])}.")
    return "\n".join(out) + "\n"


def harness_head(facts):
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (f"Command: `{facts['command']}`. {facts['rounds']} rounds of {facts['slice_s']} s a slice, interleaved; each figure is "
            f"least **median** greatest of the rounds. {facts['machine']['cores']} cores ({facts['machine']['cpu']}), nothing pinned; load average "
            f"between {facts['load'][0]:.1f} and {facts['load'][2]:.1f} (median {facts['load'][1]:.1f}): {facts['shared']}. "
            f"Other processes took {show(facts['others_cores'])} cores beside a slice; {facts['repeated']} slices were measured again "
            f"because it was more than {MAX_OTHERS_CORES}. "
            f"{versions}.\n\nScored: scores made by outrank for 100 requests, by its metrics. With stamp, scoring ends at a thirty-second of "
            f"the CPU time of all cores; with hold, who finds a seat at once waits for no score and gets one when the scoring thread is free. "
            f"The load has 64 prompts of 32 words in turn; nothing is remembered of a prompt, so each score is made anew.\n\nSettings, equal for all: one worker, round robin where there is a choice, logs at warnings, no key.\n\n"
            + "\n".join(f"- `{command}`" for command in facts["commands"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outrank", type=Path, help="the binary; without it only the other routers are measured")
    parser.add_argument("--modes", default="hold,stamp", help="modes of outrank to measure")
    parser.add_argument("--flags", default="", help="further flags of outrank serve")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="which to measure")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slice-s", type=float, default=3.0)
    parser.add_argument("--shared", default="the machine was shared with other builds", help="what else ran, for the record")
    parser.add_argument("--out", type=Path, default=harness.ROOT / "results/gateway")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as logs, harness.servers() as started:
        upstream = harness.mock(started, logs)
        ways = [Direct(upstream), harness.vllm_router(started, logs, [upstream]), harness.sglang_router(started, logs, [upstream])]
        if args.outrank:
            for mode in args.modes.split(","):
                ways.append(harness.outrank(started, logs, args.outrank, [upstream], mode, flags=args.flags.split(), body=harness.chat()))
        say("ready: " + ", ".join(way.name for way in ways))
        began = time.time()
        rows = rounds(args.cases, ways, args.rounds, args.slice_s, started)
        names, rivals = [way.name for way in ways], ["vllm-router", "sglang-router"]
        ours = [name for name in names if name.startswith("outrank")]
        versions = {"vllm-router": "0.1.17", "sglang-router": "0.3.2", "harness": harness.commit()}
        if args.outrank:
            facts = harness.binary_facts(args.outrank)
            versions[facts["version"]] = f"at {facts['commit']}"
        command = harness.command_line("bench/gateway/overhead.sh", args.outrank)
        strip = lambda server: " ".join(server.command).replace(str(harness.ROOT) + "/", "").replace(str(args.outrank), "outrank")
        result = {"facts": {"command": command, "rounds": args.rounds, "slice_s": args.slice_s, "machine": harness.machine(),
                            "load": spread([row["load_before"] for row in rows]), "repeated": sum(row["repeats"] for row in rows),
                            "others_cores": spread([row["others_cores"] for row in rows]), "shared": args.shared, "versions": versions,
                            "commands": [strip(server) for server in started], "took_s": round(time.time() - began)},
                  "rows": rows, "summary": summary(rows, names, rivals, ours)}
    harness.write(args.out, "overhead", result, table(result["facts"], result["summary"], names, rivals, ours))


if __name__ == "__main__":
    main()
