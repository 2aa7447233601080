"""Real engines behind the gateway: two embedded outrank servers and llama.cpp's own server, asked by the `openai` client (3.54.0).

usage: .venv/judges/bin/python bench/gateway/upstreams.py --outrank BIN [--mode hold|stamp] [--log FILE]

Every answer is counted three times: by the client, by the gateway's header that names the upstream, and by the upstream itself. As
long as no upstream is killed, the tokens that each says it made are the tokens that clients got of it: nothing lost, nothing
doubled. Then each kind is killed while clients read streams of it, and comes back: those streams end with an error that says why, and
nobody makes a token of them again.
"""
import argparse
import asyncio
import collections
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import openai

import harness

MODEL = "smollm2"
SEATS = 2
# Requests of one round, and how long their answers are, in tokens.
REQUESTS = 36
TOKENS = (4, 9, 14, 19)
# Where an upstream is killed: long enough to be read while that happens.
LONG_TOKENS = (160, 9, 120, 19)
# Pieces of a stream that its client has read when its upstream is killed, and those that are still to come, at least.
READ, TO_COME = 3, 40
BACK_S = 20.0
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Site:
    def __init__(self, args, mode, folder, started):
        self.args, self.mode, self.folder, self.started = args, mode, folder, started
        self.upstreams = {"outrank-a": self.embedded("outrank-a"), "outrank-b": self.embedded("outrank-b"), "llama": self.llama("llama")}
        # The embedded engine refuses fields that it does not know, so its priority goes into a header.
        stamp = {"outrank-a": "header", "outrank-b": "header", "llama": "body"}
        lines = [f"{server.url} name={name} stamp={stamp[name]}" for name, server in self.upstreams.items()]
        self.gateway = harness.outrank(started, folder, args.outrank, lines, mode, flags=["--health-interval-s", "0.5"], body=self.chat("Hi", 1))
        self.client = openai.OpenAI(base_url=f"{self.gateway.url}/v1", api_key="none", max_retries=0, timeout=120)

    def embedded(self, name, port=None):
        port = port or harness.free_port()
        command = [self.args.outrank, "serve", "--host", harness.HOST, "--port", port, "--model", self.args.model, "--model-name", MODEL,
                   "--seats", SEATS, "--context", 512, "--threads", 1, "--no-learn"]
        return self.start(name, command, port)

    def llama(self, name, port=None):
        port = port or harness.free_port()
        command = [self.args.llama_server, "--model", self.args.model, "--host", harness.HOST, "--port", port, "--parallel", SEATS, "--ctx-size", 512 * SEATS,
                   "--threads", 1, "--alias", MODEL, "--metrics"]
        return self.start(name, command, port)

    def start(self, name, command, port):
        server = harness.Server(name, command, port, Path(self.folder) / f"{name}-{port}-{time.monotonic_ns()}.log")
        self.started.append(server)
        return server.wait()

    def restart(self, name):
        before = self.upstreams[name]
        self.upstreams[name] = (self.llama if name == "llama" else self.embedded)(name, before.port)

    @staticmethod
    def chat(text, tokens):
        return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0}

    def made(self, without=None):
        """Tokens that each upstream says it has made since it was started."""
        names = {"llama": "llamacpp:tokens_predicted_total"}
        found = {}
        for name, server in self.upstreams.items():
            if name == without:
                continue
            text = harness.ask(server.port, "/metrics")[2]
            metric = names.get(name, "outrank_generation_tokens_total")
            found[name] = int(float(re.search(rf"^{metric} (\S+)$", text, re.M).group(1)))
        return found

    def state(self):
        return {site["name"]: site for site in json.loads(harness.ask(self.gateway.port, "/v1/outrank/upstreams")[2])["upstreams"]}

    def idle(self):
        """Waits until nothing is left in the gateway."""
        def left():
            state = json.loads(harness.ask(self.gateway.port, "/v1/outrank/upstreams")[2])
            return sum(site["in_flight"] for site in state["upstreams"]) + sum(queue["waiting"] + queue["running"] for queue in state["queues"])
        until("nothing is left in the gateway", lambda: left() == 0)

    def load(self, during=None, lengths=TOKENS):
        """A round of requests, half of them streamed, all at once. For each: upstream, tokens, and what went wrong, if anything did.
        `during` sees them as they are."""
        answers = []

        async def one(client, number):
            tokens = lengths[number % len(lengths)]
            body = {**self.chat(f"Tell me about the number {number}.", tokens), "extra_body": {"ignore_eos": True}}
            found = {"number": number, "wanted": tokens, "upstream": None, "tokens": 0, "pieces": 0, "finish": None, "error": None}
            answers.append(found)
            try:
                if number % 2:
                    raw = await client.chat.completions.with_raw_response.create(**body)
                    answer = raw.parse()
                    found["upstream"], found["finish"] = raw.headers["x-outrank-upstream"], answer.choices[0].finish_reason
                    found["tokens"] = answer.usage.completion_tokens
                    return found
                raw = await client.chat.completions.with_raw_response.create(stream=True, stream_options={"include_usage": True}, **body)
                found["upstream"] = raw.headers["x-outrank-upstream"]
                async for chunk in raw.parse():
                    found["finish"] = (chunk.choices[0].finish_reason if chunk.choices else None) or found["finish"]
                    found["tokens"] = chunk.usage.completion_tokens if chunk.usage else found["tokens"]
                    found["pieces"] += bool(chunk.choices and chunk.choices[0].delta.content)
            except openai.OpenAIError as error:
                found["error"] = f"{type(error).__name__}: {str(error)[:120]}"
            return found

        async def all_of_them():
            client = openai.AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key="none", max_retries=0, timeout=120)
            asked = [asyncio.create_task(one(client, number)) for number in range(REQUESTS)]
            if during:
                await during(answers)
            found = await asyncio.gather(*asked)
            await client.close()
            return found
        return asyncio.run(all_of_them())


def until(what, holds, wait_s=BACK_S):
    end = time.monotonic() + wait_s
    while not holds():
        assert time.monotonic() < end, f"within {wait_s:g} s it did not come true that {what}"
        time.sleep(0.1)


def by_upstream(found):
    counted = collections.Counter()
    for answer in found:
        counted[answer["upstream"]] += answer["tokens"]
    return dict(counted)


def wrong(found):
    """Answers that are not what was asked for."""
    return [answer for answer in found if answer["error"] or answer["tokens"] != answer["wanted"] or answer["finish"] != "length"]


@check
def seats_are_learned_where_the_engine_says_them(site):
    if site.mode == "stamp":
        assert all(upstream["seats"] is None for upstream in site.state().values())
        return "not asked in stamp mode"
    until("llama.cpp's server has said its seats", lambda: site.state()["llama"]["seats"] == SEATS)
    return {name: upstream["seats"] for name, upstream in site.state().items()}


@check
def all_are_answered_and_every_token_is_made_once(site):
    before = site.made()
    found = site.load()
    assert not wrong(found), wrong(found)
    site.idle()
    made = {name: tokens - before[name] for name, tokens in site.made().items()}
    got = by_upstream(found)
    assert made == got, f"the upstreams made {made}, clients got {got}"
    assert all(got.values()), f"an upstream got nothing to do: {got}"
    return f"{len(found)} answers, tokens {got}"


@check
def an_answer_is_what_the_upstream_says_without_the_gateway(site):
    direct = {}
    for name, server in site.upstreams.items():
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
        direct[name] = client.chat.completions.create(**site.chat("What is the capital of France?", 12)).choices[0].message.content
    seen = set()
    for _ in range(9):
        raw = site.client.chat.completions.with_raw_response.create(**site.chat("What is the capital of France?", 12))
        name = raw.headers["x-outrank-upstream"]
        seen.add(name)
        assert raw.parse().choices[0].message.content == direct[name], (name, raw.parse(), direct[name])
    return f"answers of {', '.join(sorted(seen))}"


def killed(name):
    def run(site):
        reading = []

        async def kill(answers):
            def read(answer):
                return answer["upstream"] == name and answer["number"] % 2 == 0 and READ <= answer["pieces"] <= answer["wanted"] - TO_COME
            end = time.monotonic() + BACK_S
            while not (found := [answer["number"] for answer in answers if read(answer)]):
                assert time.monotonic() < end, f"no client read a stream of {name}"
                await asyncio.sleep(0.005)
            site.upstreams[name].process.kill()
            reading.extend(found)
        before = site.made()
        found = site.load(during=kill, lengths=LONG_TOKENS)
        site.upstreams[name].process.wait()
        bad = wrong(found)
        assert set(reading) <= {answer["number"] for answer in bad}, f"of the streams {reading}, which were cut, some look whole: {bad}"
        # A stream that had begun cannot be taken over; there were no more of them than seats. All others were sent again.
        assert len(bad) <= SEATS and all(answer["upstream"] == name and answer["number"] % 2 == 0 for answer in bad), bad
        for answer in bad:
            # An event of the stream, which the client raises, and not a connection that ends.
            assert (answer["error"] or "").startswith("APIError: ") and "upstream" in answer["error"], answer
            assert answer["pieces"] < answer["wanted"] and answer["finish"] is None, answer
        site.idle()
        # Those that live made what clients got of them: none of the cut streams was made again.
        made = {other: tokens - before[other] for other, tokens in site.made(without=name).items()}
        got = {other: tokens for other, tokens in by_upstream(found).items() if other != name}
        assert made == got, f"the upstreams made {made}, clients got {got}"
        assert not site.state()[name]["up"], "a dead upstream is said to be up"
        site.restart(name)
        until(f"{name} is up again", lambda: site.state()[name]["up"])
        before = site.made()
        again = site.load()
        assert not wrong(again), wrong(again)
        site.idle()
        made = {other: tokens - before[other] for other, tokens in site.made().items()}
        assert made == by_upstream(again), f"the upstreams made {made}, clients got {by_upstream(again)}"
        assert by_upstream(again).get(name), f"{name} got nothing to do after it came back"
        cut = ", ".join(f"{answer['pieces']} of {answer['wanted']}" for answer in bad)
        return f"{len(bad)} streams cut of {len(found)} answers, after {cut} pieces: {bad[0]['error']}; back: tokens {by_upstream(again)}"
    run.__name__ = f"{name.replace('-', '_')}_killed_while_its_streams_are_read_costs_those_alone_and_comes_back"
    return run


for victim in ("outrank-b", "llama"):
    check(killed(victim))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outrank", type=Path, required=True)
    parser.add_argument("--llama-server", type=Path, default=harness.ROOT / ".cache/llama-server/llama-server")
    parser.add_argument("--model", type=Path, default=harness.ROOT / ".cache/models/smollm2-135m-instruct-q4_1.gguf")
    parser.add_argument("--mode", choices=["hold", "stamp"], help="one mode only")
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    lines, failed = [], 0

    def tell(line):
        lines.append(line)
        print(line, flush=True)
    facts = harness.binary_facts(args.outrank)
    version = (args.llama_server.parent / "version.txt").read_text().splitlines()[0]
    tell(f"two embedded servers of {facts['version']} at {facts['commit']}, llama-server of {version}, {SEATS} seats each, SmolLM2-135M; openai {openai.__version__}")
    for mode in [args.mode] if args.mode else ["hold", "stamp"]:
        with tempfile.TemporaryDirectory() as folder, harness.servers() as started:
            site = Site(args, mode, folder, started)
            for function in CHECKS:
                name = f"{mode}: {function.__name__.replace('_', ' ')}"
                try:
                    tell(f"ok      {name}: {function(site)}")
                except Exception as error:  # every check is reported
                    failed += 1
                    tell(f"FAILED  {name}: {type(error).__name__}: {str(error)[:900]}")
    tell(f"{len(lines) - 1 - failed} passed, {failed} failed")
    if args.log:
        args.log.parent.mkdir(parents=True, exist_ok=True)
        args.log.write_text("\n".join(lines) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
