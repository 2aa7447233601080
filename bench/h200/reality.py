"""Runs seeded synthetic requests through vLLM under several policies and records what each request lived through.

usage: python3 reality.py --model DIR --out DIR --plan main|small-kv|tight-kv [--seconds LIMIT]

Writes to --out as results come: `reality-PLAN.jsonl` (a header line for each run, then a line for each of its
requests), `raw-PLAN.jsonl` (the log of steplog.py) and `phases-PLAN.jsonl`. collect.py joins them; results/h200/README.md
says what the fields mean.
"""

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import time
import traceback

import numpy as np

import steplog

SEED = 20261122
POPULATION = 4000
SEATS = 256
RUN_LIMIT_S = 170
KV_TOKENS = {"small-kv": 131072, "tight-kv": 65536}  # plans with less KV memory than the GPU has


def population():
    """The requests that every run draws from, in order of arrival: token ids, lengths and scores."""
    rng = np.random.default_rng(SEED)
    prompts = np.clip(np.rint(np.exp(np.log(120) + 1.0 * rng.standard_normal(POPULATION))), 8, 2000).astype(int)
    outputs = np.clip(np.rint(np.exp(np.log(230) + 0.9 * rng.standard_normal(POPULATION))), 4, 2000).astype(int)
    noisy = np.log(outputs) + 0.8 * rng.standard_normal(POPULATION)
    ranks = np.argsort(np.argsort(noisy, kind="stable"), kind="stable")
    return [
        {"ids": rng.integers(10, 30000, prompt).tolist(), "output": int(output), "score": int(rank)}
        for prompt, output, rank in zip(prompts, outputs, ranks)
    ]


def poisson(rate, seconds):
    """Arrival times at `rate` a second: the same draws for every rate, stretched."""
    gaps = np.random.default_rng(SEED + 1).exponential(size=POPULATION)
    times = np.cumsum(gaps) / rate
    return [float(t) for t in times[times < seconds]]


def priority(policy, request):
    """vLLM's priority: lower first, ties by arrival."""
    return {"fcfs": 0, "rank": request["score"], "oracle": request["output"]}[policy]


class Driver:
    """One engine and the files that its runs go to."""

    def __init__(self, args):
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.began, self.args = time.monotonic(), args
        self.raw = self.path("raw")
        os.environ["STEPLOG_PATH"] = self.raw
        options = dict(
            model=args.model, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", max_model_len=4096,
            max_num_seqs=SEATS, scheduling_policy="priority", enable_prefix_caching=False,
            compilation_config={"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}, gpu_memory_utilization=0.9,
            disable_log_stats=False, scheduler_cls="steplog.StepLog",
        )  # fmt: skip
        if args.plan in KV_TOKENS:
            options["num_gpu_blocks_override"] = KV_TOKENS[args.plan] // 16
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
        self.requests = population()
        self.about = steplog.read_log(self.raw)[0] | {"gpu": gpu_name(), "vllm": vllm_version(), "seed": SEED}
        self.serial = 0
        gc.freeze()
        print(f"engine up after {time.monotonic() - self.began:.1f} s: {self.about}", flush=True)

    def path(self, name):
        return os.path.join(self.args.out, f"{name}-{self.args.plan}.jsonl")

    def append(self, name, records):
        with open(self.path(name), "a") as out:
            out.writelines(json.dumps(record) + "\n" for record in records)

    async def generate(self, ids, tokens, rank=0):
        """Runs one request to its end; returns its last output."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=tokens, ignore_eos=True, detokenize=False, temperature=1.0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        self.serial += 1
        last = None
        prompt = TokensPrompt(prompt_token_ids=ids)
        async for last in self.engine.generate(prompt, params, request_id=f"r{self.serial}", priority=rank):
            pass
        return last

    async def phase(self, name, work, need_s=0.0):
        """Runs `work` (a function that makes a coroutine) as a phase of the step log, unless too little time is left."""
        left = self.args.seconds - (time.monotonic() - self.began)
        if left < need_s:
            print(f"{name}: skipped, {left:.0f} s left", flush=True)
            return None
        start = time.monotonic()
        try:
            return await asyncio.wait_for(work(), min(RUN_LIMIT_S, max(left, 1)))
        except Exception:
            traceback.print_exc()
            print(f"{name}: failed", flush=True)
            return None
        finally:
            self.append("phases", [{"phase": name, "start": start, "end": time.monotonic()}])
            await asyncio.sleep(0.3)

    async def run(self, name, policy, arrivals, kind, rate=None, load=None, need_s=75.0):
        """One run of the first len(arrivals) requests; records every request."""

        async def work():
            records = []
            start = time.monotonic()

            async def one(index, arrival):
                delay = start + arrival - time.monotonic()
                if delay > 0:
                    await asyncio.sleep(delay)
                request = self.requests[index]
                rank = priority(policy, request)
                submitted = time.monotonic()
                last = await self.generate(request["ids"], request["output"], rank)
                end, m = time.monotonic(), last.metrics
                records.append({
                    "run": name, "index": index, "arrival_s": round(arrival, 6),
                    "prompt_tokens": len(request["ids"]), "output_tokens": request["output"],
                    "score": request["score"], "priority": rank,
                    "submitted_s": round(submitted - start, 6), "queued_s": round(m.queued_ts - start, 6),
                    "scheduled_s": round(m.scheduled_ts - start, 6),
                    "ttft_s": round(m.first_token_ts - start - arrival, 6), "e2e_s": round(end - start - arrival, 6),
                    "ok": len(last.outputs[0].token_ids) == request["output"],
                })  # fmt: skip

            await asyncio.gather(*(one(i, arrival) for i, arrival in enumerate(arrivals)))
            duration = time.monotonic() - start
            tokens = sum(record["output_tokens"] for record in records)
            header = {
                "run": name, "policy": policy, "arrivals": kind, "rate": rate, "load": load, "requests": len(records),
                **self.about, "duration_s": round(duration, 4), "output_tokens": tokens,
                "tokens_per_s": round(tokens / duration, 1), "short": sum(not record["ok"] for record in records),
            }  # fmt: skip
            for record in records:
                del record["ok"]
            self.append("reality", [header, *sorted(records, key=lambda record: record["index"])])
            show(header, records)
            return duration

        return await self.phase(name, work, need_s)

    def capacity(self, name):
        """Requests a second while every seat was taken and others waited, from the steps of the phase `name`."""
        phase = [p for p in map(json.loads, open(self.path("phases"))) if p["phase"] == name][-1]
        steps = [s for s in steplog.read_log(self.raw)[1] if phase["start"] <= s["t"] <= phase["end"]]
        full = [s for s in steps if s["running"] >= SEATS - 4 and s["waiting"] > 0] or steps
        tokens = sum(s["decodes"] + s["prefills"] - s["chunks"] for s in full[1:])
        rate = tokens / (full[-1]["done"] - full[0]["done"])
        mean = statistics.mean(request["output"] for request in self.requests)
        print(f"saturated: {rate:.0f} tok/s, {rate / mean:.2f} requests/s of {mean:.1f} tokens", flush=True)
        return rate / mean

    async def group(self, count, prompt, tokens):
        """`count` equal requests at once."""
        rng = np.random.default_rng(self.serial)
        prompts = [rng.integers(10, 30000, prompt).tolist() for _ in range(count)]
        await asyncio.gather(*(self.generate(ids, tokens) for ids in prompts))

    async def beside(self, count, tokens, sizes, repeats):
        """Single prefills of several sizes beside `count` decoding requests (none: from an idle engine)."""
        background = [asyncio.create_task(self.group(count, 64, tokens))] if count else []
        await asyncio.sleep(1.0 if count else 0.0)
        for _ in range(repeats):
            for size in sizes:
                await self.group(1, size, 1)
        await asyncio.gather(*background)

    async def sweep(self):
        """Steps of compositions that the runs do not reach."""
        for count in (1, 2, 8, 16, 32, 64, 128, 192, 256):
            await self.phase(f"sweep-decode-{count}", lambda: self.group(count, 64, 100), 20)
        sizes = (16, 64, 128, 256, 512, 768, 1024, 1536, 1800)
        for count, tokens in ((1, 700), (64, 600), (200, 500)):
            await self.phase(f"sweep-prefill-beside-{count}", lambda: self.beside(count, tokens, sizes, 5), 25)
        await self.phase("sweep-prefill-idle", lambda: self.beside(0, 0, (*sizes, 2048), 4), 15)
        await self.phase("sweep-prefill-only", lambda: self.group(60, 1000, 1), 15)
        await self.phase("sweep-context-64", lambda: self.group(64, 3000, 200), 30)
        await self.phase("sweep-context-200", lambda: self.group(200, 3000, 480), 50)

    async def main(self):
        """The plan: most wanted first, as a late phase is skipped when time runs out."""
        burst = [0.0] * (800 if self.args.plan in KV_TOKENS else 2000)
        await self.phase("warm", lambda: self.group(200, 200, 100))
        await self.phase("warm", lambda: self.group(30, 1500, 20))
        if self.args.plan in KV_TOKENS:
            for policy in ("fcfs", "rank", "oracle"):
                await self.run(f"{self.args.plan}-burst-{policy}", policy, burst, "burst", need_s=35)
            return
        await self.run("burst-fcfs", "fcfs", burst, "burst")
        capacity = self.capacity("burst-fcfs")
        await self.run("burst-rank", "rank", burst, "burst")
        await self.sweep()
        await self.run("burst-oracle", "oracle", burst, "burst")
        for load in (1.2, 0.8):
            rate = round(load * capacity, 3)
            for policy in ("fcfs", "rank", "oracle"):
                await self.run(f"poisson-{load}-{policy}", policy, poisson(rate, 45), "poisson", rate, load, 90)


def show(header, records):
    """Prints one line that sums a run up."""
    e2e = np.array([record["e2e_s"] for record in records])
    ttft = np.array([record["ttft_s"] for record in records])
    per_token = e2e / np.array([record["output_tokens"] for record in records])
    line = {name: header[name] for name in ("run", "rate", "requests", "duration_s", "tokens_per_s", "short")}
    line["s_per_token"] = round(float(per_token.mean()), 4)
    for name, values in (("e2e", e2e), ("ttft", ttft)):
        line[name] = [round(float(v), 3) for v in (values.mean(), *np.percentile(values, (50, 90, 99)), values.max())]
    line["queued_last_s"] = max(record["queued_s"] - record["arrival_s"] for record in records)
    print(json.dumps(line), flush=True)


def gpu_name():
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip()


def vllm_version():
    from importlib.metadata import version

    return version("vllm")


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--plan", choices=("main", *KV_TOKENS), default="main")
    parser.add_argument("--seconds", type=float, default=800, help="start no phase that would end later than this")
    driver = Driver(parser.parse_args())
    try:
        await driver.main()
    finally:
        driver.engine.shutdown()
    print("finished", round(time.monotonic() - driver.began, 1), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
