"""Runs real prompts with recorded lengths through vLLM with the plug-in under several policies, in one engine, in turn.

usage: python3 plugin.py --model DIR --requests FILE --trained RANKER --out DIR --seconds LIMIT [--plan RUN,RUN,...]

A run is POLICY:ARRIVALS, e.g. `outrank-trained:burst` or `stock:1.3` (Poisson for --poisson-s seconds at 1.3 of the capacity that
the stock burst reached). Each run starts with a plug-in that knows nothing of the runs before. Writes to --out as results
come: `plugin-runs.jsonl` (a summary a run), `plugin-requests.jsonl` (a line a request), `plugin-log.jsonl` (time of every call
of schedule(), in the plug-in and in vLLM).
"""

import argparse
import asyncio
import gc
import gzip
import json
import os
import random
import time

import numpy as np

SEED = 20261124


def load(path, context):
    """Requests of a file of JSON lines with prompt, prompt_tokens, output_tokens, shuffled; each with random token ids."""
    rng = random.Random(SEED)
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    rng.shuffle(rows)
    for row in rows:
        tokens = max(4, min(row["prompt_tokens"], context // 2))
        row["ids"] = [rng.randrange(10, 30000) for _ in range(tokens)]
        row["output"] = max(2, min(row["output_tokens"], context // 2))
    return rows


def summary(rows):
    """Means and tails of one run: seconds, s/token of output."""
    e2e, ttft, tokens, done = (np.array([row[name] for row in rows]) for name in ("e2e_s", "ttft_s", "output", "done_s"))
    per_token, tpot = e2e / tokens, (e2e - ttft) / np.maximum(tokens - 1, 1)
    figures = {"requests": len(rows), "duration_s": done.max(), "tokens_per_s": tokens.sum() / done.max()}
    for name, values in (("s_per_token", per_token), ("ttft_s", ttft), ("e2e_s", e2e), ("tpot_s", tpot)):
        figures |= {f"{name}_mean": values.mean()} | {f"{name}_p{q}": np.percentile(values, q) for q in (50, 90, 99)}
    done = np.sort(done)
    low, high = int(0.1 * len(done)), int(0.8 * len(done))
    figures["capacity_per_s"] = (high - low) / max(done[high] - done[low], 1e-9)
    return {name: round(float(value), 6) for name, value in figures.items()}


class Driver:
    """One engine and the files that its runs go to."""

    def __init__(self, args):
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.began, self.args, self.capacity, self.serial = time.monotonic(), args, args.capacity, 0
        self.rows = load(args.requests, args.context)
        options = dict(
            model=args.model, load_format="dummy", skip_tokenizer_init=True, dtype=args.dtype, max_model_len=args.context,
            max_num_seqs=args.seats, enable_prefix_caching=False, disable_log_stats=False, scheduling_policy="priority",
            scheduler_cls="plugin_switch.make",
            additional_config={"outrank": {"log": os.path.join(args.out, "plugin-log.jsonl")}, "bench": {"trained": args.trained}},
        )  # fmt: skip
        if args.eager:
            options["enforce_eager"] = True
        else:
            options["compilation_config"] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
            options["gpu_memory_utilization"] = 0.9
        if args.kv_tokens:
            options["num_gpu_blocks_override"] = args.kv_tokens // 16
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
        gc.freeze()
        print(f"engine up after {time.monotonic() - self.began:.1f} s", flush=True)

    async def one(self, run, policy, row, start, arrival_s, rows):
        """One request to its end."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        extra = {"outrank.prompt": row["prompt"], "outrank.length": row["output"], "outrank.recorded": True, "bench.policy": policy}
        params = SamplingParams(
            max_tokens=row["output"], ignore_eos=True, detokenize=False, temperature=1.0, extra_args=extra,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        self.serial += 1
        last, prompt, sent = None, TokensPrompt(prompt_token_ids=row["ids"]), time.monotonic()
        async for last in self.engine.generate(prompt, params, request_id=f"{run}-{self.serial}"):
            pass
        now, late = time.monotonic(), sent - start - arrival_s
        assert len(last.outputs[0].token_ids) == row["output"], "an answer of another length than asked for"
        rows.append({"run": run, "arrival_s": round(arrival_s, 5), "prompt_tokens": len(row["ids"]), "output": row["output"],
                     "ttft_s": round(last.metrics.first_token_latency + late, 5), "e2e_s": round(now - start - arrival_s, 5),
                     "done_s": round(now - start, 5)})  # fmt: skip

    async def run(self, name, policy, arrivals):
        """One run; writes its files."""
        rows, rng = [], random.Random(SEED)
        count = self.args.burst if arrivals == "burst" else len(self.rows)
        start, at, tasks = time.monotonic() + 0.05, 0.0, []
        for index in range(10 * count):
            if arrivals != "burst":
                at += rng.expovariate(float(arrivals) * self.capacity)
            if (index >= count) if arrivals == "burst" else (at > self.args.poisson_s):
                break
            if (wait := start + at - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            row = self.rows[index % len(self.rows)]
            tasks.append(asyncio.create_task(self.one(name, policy, row, start, at, rows)))
        await asyncio.gather(*tasks)
        figures = summary(rows)
        if name == "stock:burst":
            self.capacity = figures["capacity_per_s"]
        about = {"run": name, "policy": policy, "arrivals": arrivals, "seats": self.args.seats, "kv_tokens": self.args.kv_tokens,
                 "load_base_per_s": self.capacity, "ended_s": time.monotonic()}  # fmt: skip
        with open(os.path.join(self.args.out, "plugin-runs.jsonl"), "a") as out:
            out.write(json.dumps(about | figures) + "\n")
        with open(os.path.join(self.args.out, "plugin-requests.jsonl"), "a") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
        print(json.dumps({"run": name, "s": round(time.monotonic() - self.began)} | {k: figures[k] for k in (
            "duration_s", "tokens_per_s", "s_per_token_mean", "s_per_token_p90", "ttft_s_mean", "ttft_s_p99", "e2e_s_mean", "e2e_s_p99")}), flush=True)  # fmt: skip


async def main(args):
    driver = Driver(args)
    warm, args.burst = args.burst, min(args.burst, 200)
    await driver.run("warm", "stock", "burst")
    args.burst = warm
    for plan in args.plan.split(","):
        policy, arrivals = plan.split(":")
        left = args.seconds - (time.monotonic() - driver.began)
        need = args.need_s if arrivals == "burst" else args.poisson_s * max(float(arrivals), 1.0) + 3
        if left < need:
            print(f"{plan}: skipped, {left:.0f} s left", flush=True)
            continue
        await driver.run(plan, policy, arrivals)
    driver.engine.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", required=True, help="held-out requests, JSON lines, gzip")
    parser.add_argument("--trained", required=True, help="ranker trained on the other requests")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, required=True, help="start no run that would end later")
    parser.add_argument("--need-s", type=float, default=50, help="what a burst takes")
    parser.add_argument("--poisson-s", type=float, default=60)
    parser.add_argument("--burst", type=int, default=2000)
    parser.add_argument("--seats", type=int, default=256)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--kv-tokens", type=int, default=0)
    parser.add_argument("--capacity", type=float, default=0.0, help="requests/s; by default from the run stock:burst")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--plan", default="stock:burst,outrank-trained:burst,oracle:burst,stock:1.3,outrank-trained:1.3,"
                        "outrank-shipped:burst,outrank-none:burst,oracle:1.3,stock:1.0,outrank-trained:1.0")  # fmt: skip
    asyncio.run(main(parser.parse_args()))
