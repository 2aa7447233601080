"""Real requests to `vllm serve` with the plug-in, through the openai client: order, seats, starvation bound, aborts, metrics.

usage: python serve.py MODEL_DIR LOG_DIR all|answers [ARGUMENT OF vllm serve ...]   (needs vllm and outrank_vllm installed, and openai)

`answers` only sends requests, and wants all answered and every engine's metrics: for several engines or workers.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request

import openai

PORT, SEATS, PATIENCE_S = 8765, 4, 4.0
SHORT = "Answer with yes or no only: is {} a prime number?"
LONG = "Write a detailed story of 2000 words about a sailor and {} islands. Describe every island at length."
OUTRANK = {"learn": False, "outrank": {"patience_s": PATIENCE_S, "min_gain_services": 0.05, "switch_cost_factor": 0.0}}


def metrics():
    """Samples of /metrics by name, summed over labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics") as page:
        text, samples = page.read().decode(), {}
    for name, value in re.findall(r"^([a-z_]+:[a-z_]+)(?:{[^}]*})? (\S+)$", text, re.M):
        samples[name] = samples.get(name, 0.0) + float(value)
    return samples


class Client:
    """Sends prompts, and notes when each was sent, started and ended, in seconds of one clock."""

    def __init__(self, model):
        self.openai, self.model = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none", max_retries=0), model

    async def ask(self, prompt, tokens, stop_after=None):
        """Streams an answer of exactly so many tokens; gives up after `stop_after` of them."""
        told = {"sent": time.monotonic(), "started": None, "tokens": 0}
        stream = await self.openai.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": prompt}], max_tokens=tokens, temperature=0.0, stream=True,
            stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
        )  # fmt: skip
        async for part in stream:
            told["started"] = told["started"] or time.monotonic()
            if part.usage:
                told["tokens"] = part.usage.completion_tokens
            if stop_after and time.monotonic() - told["started"] > stop_after:
                await stream.close()
                return told
        told["ended"] = time.monotonic()
        assert told["tokens"] == tokens, told
        return told

    async def fill(self, tokens):
        """Takes every seat with requests that are taken for short, so that what comes next waits."""
        tasks = [asyncio.create_task(self.ask(SHORT.format(i), tokens)) for i in range(SEATS)]
        await asyncio.sleep(1.0)
        return tasks


async def order(client):
    """Those that wait start in the order of their predicted length, not of their arrival."""
    filling = await client.fill(60)
    prompts = [(LONG if i % 2 == 0 else SHORT).format(20 + i) for i in range(12)]
    told = []
    for prompt in prompts:
        told.append(asyncio.create_task(client.ask(prompt, 12)))
        await asyncio.sleep(0.01)
    told = await asyncio.gather(*told)
    await asyncio.gather(*filling)
    starts = sorted(range(12), key=lambda i: told[i]["started"])
    all_there = max(it["sent"] for it in told) + 0.1  # who got a seat before that had nobody to give way to
    chosen = [i for i in starts if told[i]["started"] > all_there]
    long = [at for at, i in enumerate(chosen) if i % 2 == 0]
    short = [at for at, i in enumerate(chosen) if i % 2 == 1]
    assert len(long) >= 4 and len(short) >= 4 and max(short) < min(long), f"order of starts {starts}, with a choice {chosen}"
    print(f"order: sent long, short, long, ...; started {starts} (odd ones are short; the first {12 - len(chosen)} had no choice)", flush=True)


async def seats(client):
    """Short ones take the seats of long ones, which then end with every token."""
    before = metrics()["outrank:seat_preemptions_total"]
    long = [asyncio.create_task(client.ask(LONG.format(i), 200)) for i in range(SEATS)]
    await asyncio.sleep(3.0)
    short = await asyncio.gather(*(client.ask(SHORT.format(50 + i), 8) for i in range(8)))
    long = await asyncio.gather(*long)
    await asyncio.sleep(1.5)
    taken = metrics()["outrank:seat_preemptions_total"] - before
    assert taken >= 1, "no seat changed hands"
    first_end = min(it["ended"] for it in long)
    before = sum(it["ended"] < first_end for it in short)
    assert before >= 2, "the short ones waited until a long one had ended"
    print(f"seats: all {SEATS} seats held by long requests, {taken:.0f} taken over; {before} of 8 short ones ended before the first long"
          " one; the long ones ended in full", flush=True)  # fmt: skip


async def bound(client):
    """A long request is overtaken by later arrivals, but by none that came more than patience_s after it."""
    filling, asked = await client.fill(60), []
    filling += [asyncio.create_task(client.ask(SHORT.format(60 + i), 60)) for i in range(12)]
    await asyncio.sleep(0.3)
    long = asyncio.create_task(client.ask(LONG.format(7), 600, stop_after=0.1))
    began = time.monotonic()
    while not long.done() and time.monotonic() - began < 60:
        asked.append(asyncio.create_task(client.ask(SHORT.format(100 + len(asked)), 40)))
        await asyncio.sleep(0.25)
    assert long.done(), "starved for a minute"
    long, asked = await long, await asyncio.gather(*asked)
    await asyncio.gather(*filling)
    ahead = [it["sent"] - long["sent"] for it in asked if it["started"] < long["started"]]
    assert len(ahead) > 2, "nobody overtook it: the test shows nothing"
    assert max(ahead) <= PATIENCE_S + 1.0, f"overtaken by one that came {max(ahead):.1f} s later"
    waited = long["started"] - long["sent"]
    print(f"bound: a long request waited {waited:.1f} s and was overtaken by {len(ahead)} later ones, the last sent {max(ahead):.1f} s"
          f" after it (patience {PATIENCE_S} s)", flush=True)  # fmt: skip


async def aborts(client):
    """Clients that leave free what they held; the others are served in full."""
    kept = [client.ask(SHORT.format(i), 60) for i in range(8)]
    left = [client.ask(LONG.format(i), 500, stop_after=0.3) for i in range(8)]
    told = await asyncio.gather(*kept, *left)
    await asyncio.sleep(2.0)
    now = metrics()
    held = {name: now[name] for name in ("outrank:waiting", "outrank:running", "vllm:num_requests_running",
                                         "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")}  # fmt: skip
    assert all("ended" in it for it in told[:8]) and all("ended" not in it for it in told[8:])
    assert not any(held.values()), held
    print(f"aborts: 8 left, 8 served in full; then {json.dumps(held)}", flush=True)


async def answers(client):
    """Every engine serves and tells of it."""
    told = await asyncio.gather(*(client.ask((LONG if i % 2 else SHORT).format(i), 16) for i in range(24)))
    await asyncio.sleep(2.0)
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics") as page:
        scored = re.findall(r"^outrank:scored_total({.*}) (\S+)$", page.read().decode(), re.M)
    assert sum(float(count) for _, count in scored) == 24 and all(float(count) > 0 for _, count in scored), scored
    print(f"answers: {len(told)} requests answered in full; scored {scored}", flush=True)


async def check(model, only_answers):
    """All checks, one after the other."""
    client = Client(model)
    if only_answers:
        return await answers(client)
    await order(client)
    await seats(client)
    await bound(client)
    await aborts(client)
    await asyncio.sleep(1.5)
    ours = {name: value for name, value in metrics().items() if name.startswith("outrank:") and not name.endswith("_created")}
    assert ours["outrank:scored_total"] >= 40, ours
    print("metrics:", ", ".join(f"{name} {value:g}" for name, value in ours.items()), flush=True)


def main(model, logs, checks, *arguments):
    """Starts the server, waits for it, runs the checks, and stops it."""
    command = ["vllm", "serve", model, "--served-model-name", "m", "--port", str(PORT), "--dtype", "float32", "--enforce-eager",
               "--max-model-len", "2048", "--max-num-seqs", str(SEATS), "--scheduler-cls", "outrank_vllm.make",
               "--additional-config", json.dumps({"outrank": OUTRANK}), *arguments]  # fmt: skip
    print("serving: vllm serve MODEL", *command[3:], flush=True)
    with open(os.path.join(logs, "server.tmp"), "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    began = time.monotonic()
    try:
        while True:
            assert server.poll() is None and time.monotonic() - began < 600, "the server did not start: see server.tmp"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health").close()
                break
            except OSError:
                time.sleep(1)
        print(f"up after {time.monotonic() - began:.0f} s", flush=True)
        asyncio.run(check("m", checks == "answers"))
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
