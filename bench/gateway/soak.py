"""Long and heavy load through the gateway, before the mock server: streams, overload, and two tenants.

usage: python3 bench/gateway/soak.py --outrank BIN [--parts streams,overload,tenants] [--streams N] [--minutes M] [--out FOLDER] [--name NAME]

streams   Short answers over as many connections first, so that all that has a bound is full (the learner's answers, records, the allocator's
          heaps). Then N concurrent streams for M minutes: memory and open files of the gateway over time, latency of tokens through it
          (the mock stamps each with the time when it was sent) beside that of the direct way.
overload  0.8 and then 3 times what the mock serves, the latter also with each of --flags: what accepted requests wait, how fast the
          others are refused.
tenants   one tenant alone with half the seats, then with all of them beside a tenant that sends ten times as much.
"""
import argparse
import json
import re
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import gateway_flags
import harness
from harness import load, say

SERVICE = dict(ttft_ms=50, itl_ms=10)
TOKENS = "8,16,32,72"
SERVICE_S = statistics.mean((50 + 10 * (n - 1)) / 1e3 for n in (8, 16, 32, 72))
# Of gateways that refuse what would wait longer, unless said.
IMPATIENT = "--max-wait-s 0.3"


class Watch(threading.Thread):
    """Samples what a server uses, and its queue, until stopped."""

    def __init__(self, server, every_s=5.0):
        super().__init__(daemon=True)
        self.server, self.every_s, self.rows, self.over = server, every_s, [], threading.Event()
        self.start()

    def run(self):
        began = time.monotonic()
        while not self.over.wait(self.every_s):
            try:
                row = {"at_s": round(time.monotonic() - began, 1), **self.server.usage()}
                row["gauges"] = gauges(self.server)
            except OSError:
                continue
            self.rows.append(row)

    def stop(self):
        self.over.set()
        self.join(15)
        return self.rows


def gauges(server):
    """Sums of the gateway's gauges of queue and requests in flight."""
    try:
        text = harness.ask(server.port, "/metrics", timeout_s=5.0)[2]
    except OSError:
        return {}
    found = {}
    for name, value in re.findall(r"^(outrank_(?:queue_depth|running|upstream_inflight|upstream_window|connections)\w*)(?:\{[^}]*\})? ([0-9.eE+-]+)$", text, re.M):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def slope_per_minute(rows, name):
    """Least squares over time."""
    xs, ys = [row["at_s"] / 60 for row in rows], [row[name] for row in rows]
    mx, my = statistics.mean(xs), statistics.mean(ys)
    spread = sum((x - mx) ** 2 for x in xs)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / spread if spread else 0.0


def thirds(rows, name):
    """Median of the first and of the last third of what came after the ramp."""
    part = max(len(rows) // 3, 1)
    return statistics.median(row[name] for row in rows[:part]), statistics.median(row[name] for row in rows[-part:])


def streams(args, logs):
    flags = dict(connections=args.streams, ramp_s=20, warm_up_s=10, stream=True, usage=True, max_tokens="64,128,256", timeout_s=300)
    result = {"streams": args.streams, "minutes": args.minutes, "ways": {}}
    with harness.servers() as started:
        upstream = harness.mock(started, logs, ttft_ms=200, itl_ms=args.itl_ms)
        rivals = {"direct": upstream}
        if args.rivals:
            rivals["vllm-router"] = harness.vllm_router(started, logs, [upstream])
            rivals["sglang-router"] = harness.sglang_router(started, logs, [upstream])
        for name, server in rivals.items():
            result["ways"][name] = load("closed", server.url, duration_s=args.baseline_s, pid=[server.pid], **flags)
            result["ways"][name]["process"] = result["ways"][name]["usage"].get(str(server.pid))
            brief(name, result["ways"][name])
        if not args.outrank:
            return result
        gateway = harness.outrank(started, logs, args.outrank, [upstream], args.mode, flags=gateway_flags.wide(args.streams * 2), body=harness.chat())
        before = gateway.usage()
        if args.fill_s:
            short = load("closed", gateway.url, connections=args.streams, ramp_s=10, warm_up_s=0, duration_s=args.fill_s, stream=True, usage=True,
                         max_tokens="1,2", timeout_s=300)
            result["fill"] = {"seconds": args.fill_s, "answers": short["ok"], "after": gateway.usage()}
            say(f"filled by {short['ok']} short answers: {result['fill']['after']['rss_kib'] / 1024:.0f} MiB")
        watch = Watch(gateway)
        found = load("closed", gateway.url, wait_s=args.minutes * 60 + 300, duration_s=args.minutes * 60, window_s=30,
                     pid=[gateway.pid], **flags)
        rows = watch.stop()
        found["process"] = found["usage"].get(str(gateway.pid))
        time.sleep(10)
        after = gateway.usage()
        steady = [row for row in rows if row["at_s"] > 40]
        result["ways"]["outrank"] = found
        result["gateway"] = {"before": before, "after_10_s_idle": after, "samples": rows,
                             "rss_kib_first_and_last_third": thirds(steady, "rss_kib"), "rss_kib_per_minute": slope_per_minute(steady, "rss_kib"),
                             "open_files_first_and_last_third": thirds(steady, "open_files"), "open_files_per_minute": slope_per_minute(steady, "open_files"),
                             "gauges_after": gauges(gateway), "upstream_after": json.loads(harness.ask(upstream.port, "/mock/stats")[2])}
        brief("outrank", found)
    return result


def brief(name, run):
    transit = run.get("transit_ms") or {}
    say(f"{name}: {run['ok']} answers, {run['tokens_per_s']:.0f} tokens/s, errors {run['errors']}, statuses {run['statuses']}, token transit p50 "
        f"{transit.get('p50', 0):.2f} p99 {transit.get('p99', 0):.2f} ms, TTFT p99 {(run['ttft_ms'] or {}).get('p99', 0):.1f} ms")


def overload(args, logs):
    seats, capacity = args.seats, args.seats / SERVICE_S
    result = {"seats": seats, "mean_service_s": SERVICE_S, "capacity_per_s": capacity, "queue": args.queue, "loads": {}}
    with harness.servers() as started:
        upstream = harness.mock(started, logs, seats=seats, **SERVICE)
        gateway = harness.outrank(started, logs, args.outrank, [upstream], "hold",
                                  flags=gateway_flags.bounded(seats, args.queue), body=harness.chat())
        turns = [("0.8", 0.8, gateway), ("3", 3.0, gateway)]
        for nth, flags in enumerate((args.flags or IMPATIENT).split(";"), 1):
            impatient = harness.outrank(started, logs, args.outrank, [upstream], "hold", name=f"outrank-impatient-{nth}",
                                        flags=[*gateway_flags.bounded(seats, args.queue), *flags.split()], body=harness.chat())
            turns.append((f"3, {flags.strip()}", 3.0, impatient))
        for name, factor, gateway in turns:
            harness.ask(upstream.port, "/mock/reset", {})
            watch = Watch(gateway, 0.5)
            found = load("open", gateway.url, rate=capacity * factor, poisson=7, duration_s=args.overload_s, warm_up_s=5, stream=True,
                         max_tokens=TOKENS, pid=[gateway.pid])
            rows = watch.stop()
            found["peak_gauges"] = peak(rows)
            found["upstream"] = json.loads(harness.ask(upstream.port, "/mock/stats")[2])
            found["metrics_after"] = gauges(gateway)
            result["loads"][name] = found
            say(f"overload x{name}: statuses {found['statuses']}, errors {found['errors']}, accepted TTFT {ms(found['ttft_ms'])} E2E {ms(found['e2e_ms'])}, "
                f"refused in {ms(found['refused_ms'])}, with Retry-After {found['refused_with_retry_after']}, {found['rate_per_s']:.1f}/s of {capacity:.1f}/s, {found['peak_gauges']}")
    return result


def peak(rows):
    names = {name for row in rows for name in row["gauges"]}
    return {name: max(row["gauges"].get(name, 0.0) for row in rows) for name in names}


def ms(summary):
    return "-" if not summary else f"p50 {summary['p50']:.1f} p99 {summary['p99']:.1f} ms"


def tenants(args, logs):
    """A alone with half the seats; then A and B, which sends ten times as much, with all of them. Several rounds."""
    result = {"seats": args.seats, "mean_service_s": SERVICE_S, "rounds": []}
    turns = [(share, turn) for share in map(float, args.loads.split(",")) for turn in range(args.rounds)]
    is_found = args.auto or args.unknown_seats
    for share, turn in turns:
        rate = share * (args.seats / 2) / SERVICE_S
        row = {"share": share, "rate_a_per_s": rate, "rate_b_per_s": 10 * rate}
        for case in ("alone", "beside") if turn % 2 == 0 else ("beside", "alone"):
            seats = args.seats // 2 if case == "alone" else args.seats
            with harness.servers() as started, tempfile.TemporaryDirectory() as folder:
                upstream = harness.mock(started, logs, seats=seats, **(dict(says_seats=True) if args.auto else {}), **SERVICE)
                flags, keys = gateway_flags.tenants(folder, ["a", "b"], "auto" if is_found else seats, args.queue)
                gateway = harness.outrank(started, logs, args.outrank, [upstream], "hold", flags=[*flags, *args.flags.split()])
                # A window that is found needs the time.
                common = dict(stream=True, max_tokens=TOKENS, duration_s=args.tenant_s, warm_up_s=15 if is_found else 5)
                other = None
                if case == "beside":
                    command = harness.load_command("open", gateway.url, rate=10 * rate, poisson=100 + turn, key=keys["b"], tag="b",
                                                   **{**common, "duration_s": args.tenant_s + 2})
                    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                    time.sleep(1)
                row[case] = load("open", gateway.url, rate=rate, poisson=turn + 1, key=keys["a"], tag="a", **common)
                if other:
                    row["b"] = json.loads(other.communicate(timeout=300)[0])
        for name in ("e2e_ms", "ttft_ms"):
            for key in ("mean", "p50", "p99"):
                row[f"{name}_{key}_ratio"] = row["beside"][name][key] / row["alone"][name][key]
        result["rounds"].append(row)
        say(f"tenants load {share} round {turn + 1}: A E2E mean {row['alone']['e2e_ms']['mean']:.0f} alone, {row['beside']['e2e_ms']['mean']:.0f} beside "
            f"(x{row['e2e_ms_mean_ratio']:.2f}, p99 x{row['e2e_ms_p99_ratio']:.2f}, TTFT mean x{row['ttft_ms_mean_ratio']:.2f}); A statuses {row['beside']['statuses']}, "
            f"B statuses {row['b']['statuses']}")
    return result


def streams_text(part):
    text = [f"\n## {part['streams']:,} concurrent streams, {part['minutes']:g} minutes\n",
            "| way | seconds | answers | tokens/s | failed | token transit p50, ms | p99, ms | p99.9, ms | TTFT p99 (200 at the mock), ms | CPU a token, µs |\n|---|---|---|---|---|---|---|---|---|---|"]
    for name, run in part["ways"].items():
        transit = run["transit_ms"]
        failed = sum(run["errors"].values()) + sum(n for s, n in run["statuses"].items() if s not in ("0", "200"))
        cpu = run["process"]["cpu_s"] / max(run["tokens_per_s"] * run["duration_s"], 1) * 1e6 if run.get("process") and name != "direct" else None
        text.append(f"| {name} | {run['duration_s']:.0f} | {run['ok']:,} | {run['tokens_per_s']:,.0f} | {failed} | {transit['p50']:.2f} | {transit['p99']:.2f} | "
                    f"{transit['p999']:.2f} | {run['ttft_ms']['p99']:.1f} | {'-' if cpu is None else f'{cpu:.1f}'} |")
    if "gateway" in part:
        windows = part["ways"]["outrank"]["windows"]
        of = lambda key: harness.show(harness.spread([window["transit_ms"][key] for window in windows]))
        text.append(f"\nToken transit through outrank in {len(windows)} windows of 30 s, least **median** greatest: p50 {of('p50')} ms, p99 {of('p99')} ms, "
                    f"longest {of('max')} ms.")
        it = part["gateway"]
        first, last = it["rss_kib_first_and_last_third"]
        files = it["open_files_first_and_last_third"]
        filled = f"{part['fill']['after']['rss_kib'] / 1024:.0f} MiB after {part['fill']['answers']:,} short answers, then " if "fill" in part else ""
        text.append(f"\nGateway's memory: {it['before']['rss_kib'] / 1024:.0f} MiB before, {filled}{first / 1024:.0f} MiB in the first third, {last / 1024:.0f} MiB in the last, "
                    f"slope {it['rss_kib_per_minute']:.0f} KiB a minute, peak {it['after_10_s_idle']['peak_kib'] / 1024:.0f} MiB, {it['after_10_s_idle']['rss_kib'] / 1024:.0f} MiB "
                    f"10 s after. Open files: {files[0]:.0f} in the first third, {files[1]:.0f} in the last, slope {it['open_files_per_minute']:.2f} a minute, "
                    f"{it['after_10_s_idle']['open_files']} 10 s after ({it['before']['open_files']} before). Left at the mock 10 s after: "
                    f"{it['upstream_after']['running']} running, {it['upstream_after']['waiting']} waiting; gauges of the gateway: {it['gauges_after']}.")
    return text


def overload_text(part):
    text = [f"\n## Overload\n\nThe mock has {part['seats']} seats and serves {part['capacity_per_s']:.0f} requests/s; the gateway's queue is bounded at {part['queue']}.\n",
            "| load | offered/s | served/s | accepted | refused (429, 503) | with Retry-After | errors | accepted TTFT p50, p99, ms | accepted E2E p50, p99, ms | refused after p50, p99, ms | most queued |\n|---|---|---|---|---|---|---|---|---|---|---|"]
    for factor, run in part["loads"].items():
        refused = [run["statuses"].get(code, 0) for code in ("429", "503")]
        pair = lambda summary: "-" if not summary else f"{summary['p50']:.1f}, {summary['p99']:.1f}"
        text.append(f"| x{factor} | {run['offered_per_s']:.0f} | {run['rate_per_s']:.1f} | {run['ok']} | {refused[0]}, {refused[1]} | {run['refused_with_retry_after']} | "
                    f"{sum(run['errors'].values())} | {pair(run['ttft_ms'])} | {pair(run['e2e_ms'])} | {pair(run['refused_ms'])} | {run['peak_gauges'].get('outrank_queue_depth', '-')} |")
    return text


def tenants_text(part):
    text = [f"\n## Two tenants\n\nA alone with {part['seats'] // 2} seats, then with {part['seats']} seats beside B, which sends ten times as much. "
            "Load is what A sends, of what it may have. Bar: at most 1.2 times its latency alone.\n",
            "| load of A | round | A alone E2E mean, p99, ms | A beside B | ratio of means | of p99 | A TTFT mean alone, beside, ms | ratio | A refused | A and B served/s | B refused |\n|---|---|---|---|---|---|---|---|---|---|---|"]
    for number, row in enumerate(part["rounds"], 1):
        e2e = lambda case: f"{row[case]['e2e_ms']['mean']:.0f}, {row[case]['e2e_ms']['p99']:.0f}"
        refused = lambda run: sum(n for s, n in run["statuses"].items() if s != "200")
        ttft = f"{row['alone']['ttft_ms']['mean']:.0f}, {row['beside']['ttft_ms']['mean']:.0f}"
        text.append(f"| {row['share']} | {number} | {e2e('alone')} | {e2e('beside')} | {row['e2e_ms_mean_ratio']:.2f} | {row['e2e_ms_p99_ratio']:.2f} | {ttft} | "
                    f"{row['ttft_ms_mean_ratio']:.2f} | {refused(row['beside'])} | {row['beside']['rate_per_s'] + row['b']['rate_per_s']:.1f} | {refused(row['b'])} |")
    return text


def head(facts):
    ours, loads = facts["outrank"], facts["load"]
    return ["# Long and heavy load through the gateway\n",
            f"Command: `{facts['command']}`. {ours['version']} at {ours['commit']}, harness {facts['harness']}; {facts['machine']['cores']} cores "
            f"({facts['machine']['cpu']}), shared by mock, gateway and client; load average {min(loads):.1f} to {max(loads):.1f} between the parts: {facts['shared']}."]


def default_name(args):
    name = "-".join(["soak", *args.parts.split(",")]) if args.parts != "streams,overload,tenants" else "soak"
    name += f"-{args.seats}-seats" if args.seats != 32 else ""
    name += "-auto" if args.auto else "-unknown-seats" if args.unknown_seats else ""
    return name + ("-no-spare" if "--spare-seats 0" in args.flags else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outrank", type=Path)
    parser.add_argument("--parts", default="streams,overload,tenants")
    parser.add_argument("--mode", default="hold")
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--itl-ms", type=float, default=250.0, help="of the mock; 2,000 streams at 250 ms are 8,000 tokens/s")
    parser.add_argument("--fill-s", type=float, default=100.0, help="seconds of short answers before the streams; the learner takes 50 a second, and 4,000")
    parser.add_argument("--baseline-s", type=float, default=60.0, help="seconds of the direct way, and of the other routers")
    parser.add_argument("--rivals", action="store_true", help="the other routers too")
    parser.add_argument("--seats", type=int, default=32, help="of the mock, in overload and of the two tenants together")
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--overload-s", type=float, default=30.0)
    parser.add_argument("--tenant-s", type=float, default=25.0)
    parser.add_argument("--rounds", type=int, default=3, help="of the two tenants, at each load")
    parser.add_argument("--auto", action="store_true", help="of the two tenants: the mock says its seats, and the window is auto")
    parser.add_argument("--unknown-seats", action="store_true", help="of the two tenants: the mock does not say its seats, and the window is auto")
    parser.add_argument("--loads", default="0.6,0.85", help="of the two tenants: what the first sends, of what half of the seats can do")
    parser.add_argument("--flags", default="", help="further flags of outrank serve: of the two tenants, or of overload, there several times, separated by ;")
    parser.add_argument("--shared", default="the machine was shared with other builds")
    parser.add_argument("--out", type=Path, default=harness.ROOT / "results/gateway")
    parser.add_argument("--name", help="of the files written there [default: soak, the parts unless all, -N-seats unless 32, -auto or -unknown-seats, -no-spare]")
    args = parser.parse_args()
    if args.name and Path(args.name).name != args.name:
        parser.error(f"--name {args.name}: a file's name is needed, without folders; for those there is --out")
    loads, code = [harness.load_average()], harness.commit()
    parts, text = {}, []
    with tempfile.TemporaryDirectory() as logs:
        for name in args.parts.split(","):
            parts[name] = globals()[name](args, logs)
            text += globals()[f"{name}_text"](parts[name])
            loads.append(harness.load_average())
    ours = harness.binary_facts(args.outrank) if args.outrank else {"version": "no outrank", "commit": "-"}
    facts = {"command": harness.command_line("python3 bench/gateway/soak.py", args.outrank), "machine": harness.machine(), "load": [min(loads), max(loads)], "shared": args.shared,
             "outrank": ours, "harness": code, "parts": args.parts}
    text = head(facts) + text
    harness.write(args.out, args.name or default_name(args), {"facts": facts, "parts": parts}, "\n".join(text) + "\n")


if __name__ == "__main__":
    main()
