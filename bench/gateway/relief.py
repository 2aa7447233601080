"""Head-of-line relief: llama.cpp's own server as it is, against the same server behind `outrank serve --mode hold`.

usage: bench/gateway/relief.sh --outrank BIN [--rounds N] [--out FOLDER]

The ranker learns from the training part of the trace; held-out prompts are sent with their recorded lengths (ignore_eos, and
max_tokens = recorded length, capped). Each round does every case both ways, with the same requests at the same arrivals; the
order turns each round, and each run has a llama-server of its own, so that no prompt is in a cache. Ratios are of runs of the
same round: least, median, greatest. The bars are those of the issue: s/token at most 0.6, throughput at least 0.97.
"""
import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import harness
from harness import say, show, spread

FIGURES = {
    "s/token mean": lambda run: run["metrics"]["s_per_token"]["mean"],
    "s/token p50": lambda run: run["metrics"]["s_per_token"]["p50"],
    "s/token p99": lambda run: run["metrics"]["s_per_token"]["p99"],
    # What a neighbour takes from a run slows all its answers alike.
    "s/token mean x tokens/s": lambda run: run["metrics"]["s_per_token"]["mean"] * run["tokens_per_s"],
    "throughput, tokens/s": lambda run: run["tokens_per_s"],
    "time for all, s": lambda run: run["duration_s"],
    "TTFT mean, s": lambda run: run["metrics"]["ttft_s"]["mean"],
    "TTFT p50, s": lambda run: run["metrics"]["ttft_s"]["p50"],
    "TTFT p99, s": lambda run: run["metrics"]["ttft_s"]["p99"],
    "E2E mean, s": lambda run: run["metrics"]["e2e_s"]["mean"],
    "E2E p50, s": lambda run: run["metrics"]["e2e_s"]["p50"],
    "E2E p99, s": lambda run: run["metrics"]["e2e_s"]["p99"],
    "TPOT mean, s": lambda run: run["metrics"]["tpot_s"]["mean"],
    "longest third: E2E mean, s": lambda run: run["by_length_third"][2]["e2e_s"]["mean"],
}
BARS = {"s/token mean": ("at most", 0.6), "throughput, tokens/s": ("at least", 0.97)}


def llama(started, logs, args, number):
    port = harness.free_port()
    command = [args.llama_server, "--model", args.model, "--host", harness.HOST, "--port", port, "--parallel", args.seats,
               "--ctx-size", args.seats * args.context, "--threads", args.threads, "--alias", "smollm2", "--metrics"]
    server = harness.Server("llama-server", command, port, Path(logs) / f"llama-{number}.log")
    started.append(server)
    return server.wait()


def run(args, logs, number, case, way, seed, ranker):
    """One run: `plain`, straight at the server, or `outrank` and flags, behind it."""
    with harness.servers() as started:
        server = llama(started, logs, args, number)
        target = server
        behind = way != "plain"
        if behind:
            # The server alone refuses nobody.
            flags = ["--ranker", str(ranker), "--max-wait-s", "3600", *way.split()[1:]]
            target = harness.outrank(started, logs, args.outrank, [server], "hold", name=f"outrank-{number}", flags=flags)
        command = [args.bench or args.outrank, "bench", "--url", target.url, "--trace", args.trace, "--held-out", "--ranker", ranker,
                   "--lengths", "recorded", "--max-tokens", args.cap, "--seed", seed, "--warm-up", args.seats, "--json",
                   "--url-model", "smollm2", *case]
        load = harness.load_average()
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=1200)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
        found = json.loads(done.stdout)["runs"][0]
        if behind:
            used = target.usage()
            found["gateway"] = used
            found["gateway_window"] = window(target)
        found["load_before"] = load
        return found


def window(gateway):
    """The window that the gateway had in the end."""
    lines = harness.ask(gateway.port, "/metrics")[2].splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith("outrank_upstream_window")]


def cases(args):
    named = {}
    for burst in filter(None, args.bursts.split(",")):
        named[f"burst of {burst}"] = ["--arrivals", f"burst:{burst}"]
    for rate in filter(None, args.rates.split(",")):
        named[f"Poisson at {rate}/s for {args.duration_s:g} s"] = ["--arrivals", f"poisson:{rate}", "--duration-s", args.duration_s]
    return named


def bar(name, ratio):
    if name not in BARS or not ratio:
        return ""
    word, limit = BARS[name]
    met = ratio[1] <= limit if word == "at most" else ratio[1] >= limit
    return f"{word} {limit}: {'met' if met else 'NOT MET'}"


def table(facts, runs):
    text = ["# Head-of-line relief before llama.cpp's server\n",
            f"Command: `{facts['command']}`. {facts['rounds']} rounds; each ratio is of two runs of the same round with the same requests. "
            f"{facts['machine']['cores']} cores ({facts['machine']['cpu']}); load average before a run between {facts['load'][0]:.1f} and "
            f"{facts['load'][2]:.1f}: {facts['shared']}. {facts['llama_server']}; {facts['outrank']['version']} at {facts['outrank']['commit']}; harness "
            f"{facts['harness']}.\n",
            f"`llama-server --parallel {facts['seats']} --ctx-size {facts['context']} --threads {facts['threads']}`, SmolLM2-135M Q4_1; `outrank serve "
            f"--upstream URL --mode hold {facts['flags']}`; recorded lengths, of {facts['cap']} tokens at most; held-out prompts.\n"]
    for case in dict.fromkeys(run["case"] for run in runs):
        mine = [run for run in runs if run["case"] == case]
        plain = {run["round"]: run for run in mine if run["way"] == "plain"}
        ways = [way for way in dict.fromkeys(run["way"] for run in mine) if way != "plain"]
        text += [f"\n## {case}\n", "| | llama-server as it is |" + "".join(f" `{way}` | ratio | bar |" for way in ways),
                 "|---|---|" + "---|---|---|" * len(ways)]
        for name, figure in FIGURES.items():
            digits = 3 if "token" in name and "throughput" not in name or "TPOT" in name else 2
            line = f"| {name} | {show(spread([figure(run) for run in plain.values()]), digits)} |"
            for way in ways:
                ours = {run["round"]: run for run in mine if run["way"] == way}
                ratio = spread([figure(ours[r]) / figure(plain[r]) for r in plain if r in ours])
                line += f" {show(spread([figure(run) for run in ours.values()]), digits)} | {show(ratio, 3)} | {bar(name, ratio)} |"
            text.append(line)
        failed = sum(run["failed"] for run in mine)
        text.append(f"\n{sum(run['requests'] for run in mine)} requests, {failed} failed; lengths as recorded: "
                    f"{min(run['as_recorded'] or 0 for run in mine):.2f} (least of the runs). Window in the end: "
                    + "; ".join(f"`{way}` {[run['gateway_window'][0] for run in mine if run['way'] == way and run['gateway_window']]}" for way in ways) + ".")
    return "\n".join(text) + "\n"


def keep(args, runs, began, code):
    """Writes what there is: a run that is ended early leaves what it had."""
    version = args.llama_server.parent / "version.txt"
    facts = {"command": harness.command_line("bench/gateway/relief.sh", args.outrank), "rounds": runs[-1]["round"] + 1, "machine": harness.machine(), "shared": args.shared,
             "load": spread([run["load_before"] for run in runs]), "seats": args.seats, "context": args.seats * args.context,
             "threads": args.threads, "cap": args.cap, "flags": "--ranker own.outrank",
             "llama_server": "llama-server of " + " ".join(version.read_text().split("\n")[0:1]) if version.exists() else "llama-server",
             "outrank": harness.binary_facts(args.outrank), "harness": code, "took_s": round(time.time() - began)}
    harness.write(args.out, "relief", {"facts": facts, "runs": runs}, table(facts, runs))


def before(args):
    """The runs of before that are to be kept."""
    if not args.resume:
        return []
    kept = json.loads((args.out / "relief.json").read_text())
    mine = {"seats": args.seats, "context": args.seats * args.context, "threads": args.threads, "cap": args.cap, "outrank": harness.binary_facts(args.outrank)}
    theirs = {name: kept["facts"][name] for name in mine}
    if mine != theirs:
        raise SystemExit(f"relief: cannot resume: {args.out}/relief.json was made with {theirs}, this is {mine}")
    return kept["runs"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outrank", type=Path, required=True)
    parser.add_argument("--bench", type=Path, help="another build of outrank to send the load with")
    parser.add_argument("--llama-server", type=Path, default=harness.ROOT / ".cache/llama-server/llama-server")
    parser.add_argument("--model", type=Path, default=harness.ROOT / ".cache/models/smollm2-135m-instruct-q4_1.gguf")
    parser.add_argument("--trace", type=Path, default=harness.ROOT / "traces/smollm2-135m.jsonl.gz")
    parser.add_argument("--seats", type=int, default=4, help="of llama-server, whose own default is 4")
    parser.add_argument("--context", type=int, default=1536, help="tokens a seat")
    parser.add_argument("--threads", type=int, default=1, help="of llama-server; two wait for each other on a busy machine, and are then far slower")
    parser.add_argument("--cap", type=int, default=384, help="longest answer in tokens; the longest of our own trace has 384, so that none is cut")
    parser.add_argument("--bursts", default="80")
    parser.add_argument("--rates", default="", help="Poisson arrivals too, at these rates a second")
    parser.add_argument("--duration-s", type=float, default=40.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resume", action="store_true", help="keep the rounds that --out has, made with the same settings, and do those that are missing")
    parser.add_argument("--ways", default="plain,outrank", help="plain, and outrank with flags: plain,outrank,outrank --window 5")
    parser.add_argument("--shared", default="the machine was shared with other builds")
    parser.add_argument("--out", type=Path, default=harness.ROOT / "results/gateway")
    args = parser.parse_args()
    runs, number, began, code = before(args), 0, time.time(), harness.commit()
    with tempfile.TemporaryDirectory() as logs:
        ranker = Path(logs) / "own.outrank"
        subprocess.run([args.bench or args.outrank, "train", "--trace", args.trace, "--out", ranker], check=True, capture_output=True)
        for turn in range(1 + max((run["round"] for run in runs), default=-1), args.rounds):
            for case, flags in cases(args).items():
                ways = args.ways.split(",")
                for way in ways[turn % len(ways):] + ways[:turn % len(ways)]:
                    number += 1
                    found = run(args, logs, number, flags, way, turn + 1, ranker)
                    runs.append({"round": turn, "case": case, "way": way, **found})
                    say(f"round {turn + 1}/{args.rounds} {case} {way}: s/token {FIGURES['s/token mean'](found):.3f}, "
                        f"{found['tokens_per_s']:.0f} tokens/s, TTFT p99 {FIGURES['TTFT p99, s'](found):.1f} s, E2E p99 "
                        f"{FIGURES['E2E p99, s'](found):.1f} s, {found['failed']} failed, {found['duration_s']:.0f} s")
                keep(args, runs, began, code)


if __name__ == "__main__":
    main()
