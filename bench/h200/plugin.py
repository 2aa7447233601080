"""Runs real prompts with recorded lengths through vLLM with the plug-in under several policies, in one engine, in turn.

usage: python3 plugin.py --model DIR --requests FILE --rankers DIR --out DIR --tag NAME --seconds LIMIT --plan RUN,RUN,...

A run is POLICY:ARRIVALS[:SEATS[:KV_BLOCKS]]. ARRIVALS is `burst`, or a load as a fraction of capacity (Poisson for --poisson-s
seconds, then drain), or LOAD/SECONDS: a short slice, its answers cut at --slice-cap tokens so that it drains fast. Policies are
those of plugin_switch.py; each run starts with a plug-in that knows nothing of the runs before. With --bare vLLM is as it was
installed: no plug-in may be there, the one policy is `vllm`, and no steps are logged. The nth run of a policy at some arrivals gets the
same requests at the same times as the nth of any other. Capacity is what the first `stock:burst` reaches while requests wait; it is
written to --capacity-file, where a second driver beside this one waits for it. Runs that an earlier driver of the same --tag has begun
are left out. Writes as results come: `runs-TAG.jsonl` (a summary a run), `requests-TAG.jsonl` (a line a request), `steps-TAG.jsonl`
(a line a step).
"""

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import random
import time
from collections import Counter

import numpy as np
from workload import SEED, SLICE_CAP, load, request

SAID = ("duration_s", "tokens_per_s", "s_per_token_mean", "s_per_token_p90", "ttft_s_mean", "ttft_s_p99", "e2e_s_mean", "e2e_s_p99")

# Tokens of a step that get a CUDA graph when every step may have one (FULL): vLLM's own sizes up to 512, then 256 decodes with longer prompts.
CAPTURED = [1, 2, 4, *range(8, 256, 8), *range(256, 512, 16), *range(512, 1025, 32)]


def summary(rows):
    """Means and tails of one run: seconds, s/token of output."""
    e2e, ttft, tokens, done = (np.array([row[name] for row in rows]) for name in ("e2e_s", "ttft_s", "output_tokens", "done_s"))
    per_token, tpot = e2e / tokens, (e2e - ttft) / np.maximum(tokens - 1, 1)
    figures = {"requests": len(rows), "duration_s": done.max(), "tokens_per_s": tokens.sum() / done.max()}
    for name, values in (("s_per_token", per_token), ("ttft_s", ttft), ("e2e_s", e2e), ("tpot_s", tpot)):
        figures |= {f"{name}_mean": values.mean()} | {f"{name}_p{q}": np.percentile(values, q) for q in (50, 90, 99)}
    return {name: round(float(value), 6) for name, value in figures.items()}


def saturated_per_s(rows):
    """Requests/s of a burst while requests waited (until the last got its first token), as its tokens/s then over its mean tokens."""
    first, done, tokens = (np.array([row[name] for row in rows]) for name in ("ttft_s", "done_s", "output_tokens"))
    until = first.max()
    share = np.clip((until - first) / np.maximum(done - first, 1e-9), 0.0, 1.0)
    return float((tokens * share).sum() / until / tokens.mean())


class Run:
    """What one run is: POLICY:ARRIVALS[:SEATS[:KV_BLOCKS]]."""

    def __init__(self, text, nth, args):
        policy, arrivals, *rest = text.split(":")
        self.arrivals, self.nth = arrivals, nth
        self.load = None if arrivals == "burst" else float(arrivals.split("/")[0])
        self.seconds = float(arrivals.split("/")[1]) if "/" in arrivals else args.poisson_s
        self.cap = args.slice_cap if "/" in arrivals else None
        self.about = {"run": f"{text}#{nth}", "policy": policy, "seats": int(rest[0]) if rest else args.seats,
                      "kv_blocks": int(rest[1]) if len(rest) > 1 else 0}  # fmt: skip
        self.need_s = args.need_s if self.load is None else self.seconds * max(self.load, 1.0) + (10 if self.cap else 25)

    def arrivals_s(self, rows, burst, capacity):
        """When its requests come, in seconds from the start."""
        if self.load is None:
            return [0.0] * burst
        rng, at, times = random.Random(SEED + self.nth), 0.0, []
        mean, cut = (np.mean([min(row["output"], cap) for row in rows]) for cap in (1 << 30, self.cap or 1 << 30))
        while (at := at + rng.expovariate(self.load * capacity * mean / cut)) < self.seconds:
            times.append(at)
        return times


class Driver:
    """One engine and the files that its runs go to."""

    def __init__(self, args):
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.began, self.args, self.serial = args.began or time.monotonic(), args, 0
        self.rows = load(args.requests, args.context)
        options = dict(
            model=args.model, load_format="dummy", skip_tokenizer_init=True, dtype=args.dtype, max_model_len=args.context,
            max_num_seqs=args.seats if args.bare else args.engine_seats, enable_prefix_caching=False, disable_log_stats=False,
            tensor_parallel_size=args.tp, disable_custom_all_reduce=True,
        )  # fmt: skip
        if args.bare:
            assert importlib.util.find_spec("outrank_vllm") is None, "the plug-in is installed"
        else:
            bench = {"rankers": args.rankers, "log": os.path.join(args.out, f"steps-{args.tag}.jsonl")}
            options |= {"scheduler_cls": "plugin_switch.make", "scheduling_policy": "priority", "additional_config": {"bench": bench}}
        if args.eager:
            options |= {"enforce_eager": True}
        else:
            graphs = {"cudagraph_mode": args.graphs} | ({"cudagraph_capture_sizes": CAPTURED} if args.graphs == "FULL" else {})
            options |= {"compilation_config": {"mode": 0} | graphs, "gpu_memory_utilization": 0.9}
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
        gc.freeze()
        print(f"{args.tag}: engine up after {time.monotonic() - self.began:.1f} s", flush=True)

    async def one(self, run, index, start, arrival_s, rows):
        """One request to its end."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        if (wait := start + arrival_s - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        row = request(self.rows, run.nth, index)
        output = min(row["output"], run.cap or row["output"])
        extra = {"outrank.prompt": row["prompt"], "outrank.length": output, "outrank.recorded": True, "bench.run": run.about}
        params = SamplingParams(
            max_tokens=output, ignore_eos=True, detokenize=False, temperature=1.0, extra_args=extra,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        self.serial += 1
        last, prompt, sent = None, TokensPrompt(prompt_token_ids=row["ids"]), time.monotonic()
        async for last in self.engine.generate(prompt, params, request_id=f"r{self.serial}"):
            pass
        now, late = time.monotonic(), sent - start - arrival_s
        assert len(last.outputs[0].token_ids) == output, "an answer of another length than asked for"
        rows.append({"index": index, "arrival_s": round(arrival_s, 5), "prompt_tokens": len(row["ids"]), "output_tokens": output,
                     "queued_s": round(last.metrics.queued_ts - start, 5),
                     "ttft_s": round(last.metrics.first_token_latency + late, 5), "e2e_s": round(now - start - arrival_s, 5),
                     "done_s": round(now - start, 5)})  # fmt: skip

    async def run(self, run, burst):
        """One run; writes its files."""
        capacity = None if run.load is None else await self.capacity()
        arrivals_s = run.arrivals_s(self.rows, burst, capacity)
        rows, start = [], time.monotonic() + 0.2
        await asyncio.gather(*(self.one(run, index, start, at, rows) for index, at in enumerate(arrivals_s)))
        figures = summary(rows)
        if run.about["policy"] == "stock" and run.arrivals == "burst" and not os.path.exists(self.args.capacity_file):
            with open(self.args.capacity_file + ".new", "w") as out:
                out.write(str(saturated_per_s(rows)))
            os.rename(self.args.capacity_file + ".new", self.args.capacity_file)
        about = run.about | {"arrivals": run.arrivals, "engine": self.args.tag, "capacity_base_per_s": capacity, "started_s": round(start, 3)}
        for name, lines in (("runs", [about | figures]), ("requests", [{"run": about["run"]} | row for row in rows])):
            with open(os.path.join(self.args.out, f"{name}-{self.args.tag}.jsonl"), "a") as out:
                out.writelines(json.dumps(line) + "\n" for line in lines)
        print(json.dumps({"engine": self.args.tag, "run": about["run"], "s": round(time.monotonic() - self.began)}
                         | {key: round(figures[key], 4) for key in SAID}), flush=True)  # fmt: skip

    async def capacity(self):
        """Requests/s that the first stock burst reached, here or in the driver beside this one."""
        while not os.path.exists(self.args.capacity_file):
            await asyncio.sleep(0.2)
        with open(self.args.capacity_file) as file:
            return float(file.read())


async def main(args):
    driver = Driver(args)
    await driver.run(Run("vllm:burst" if args.bare else "outrank:burst", 9, args), args.warm)
    begun, seen = os.path.join(args.out, f"begun-{args.tag}"), Counter()
    before = set(open(begun).read().split()) if os.path.exists(begun) else set()
    for text in args.plan.split(","):
        run = Run(text, seen[text], args)
        seen[text] += 1
        if run.about["run"] in before:
            continue
        limit = os.path.join(args.out, "limit")
        seconds = float(open(limit).read()) if os.path.exists(limit) else args.seconds
        left = seconds - (time.monotonic() - driver.began)
        if left < run.need_s:
            print(f"{args.tag}: {text} skipped, {left:.0f} s left", flush=True)
            continue
        with open(begun, "a") as out:
            out.write(run.about["run"] + "\n")
        await driver.run(run, args.burst)
    driver.engine.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", required=True, help="held-out requests, JSON lines, gzip")
    parser.add_argument("--rankers", required=True, help="folder of trained.outrank (learned from the other requests) and cold.outrank")
    parser.add_argument("--out", required=True)
    parser.add_argument("--tag", default="a", help="names this engine's files")
    parser.add_argument("--plan", required=True)
    parser.add_argument("--seconds", type=float, required=True, help="start no run that would end later")
    parser.add_argument("--capacity-file", required=True)
    parser.add_argument("--began", type=float, default=0.0, help="monotonic time from which --seconds count [default: now]")
    parser.add_argument("--need-s", type=float, default=70, help="what a burst takes")
    parser.add_argument("--poisson-s", type=float, default=60)
    parser.add_argument("--slice-cap", type=int, default=SLICE_CAP)
    parser.add_argument("--burst", type=int, default=2000)
    parser.add_argument("--warm", type=int, default=200)
    parser.add_argument("--seats", type=int, default=256)
    parser.add_argument("--engine-seats", type=int, default=1024)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--bare", action="store_true", help="vLLM without the plug-in")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--graphs", default="FULL_DECODE_ONLY", choices=("FULL_DECODE_ONLY", "FULL"), help="which steps run as CUDA graphs: those without a prompt, or all of up to 1,024 tokens")
    asyncio.run(main(parser.parse_args()))
