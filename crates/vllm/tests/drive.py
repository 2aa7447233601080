"""Drives vLLM's real Scheduler with the plug-in and no model: every request ends once, and no block is lost.

usage: python drive.py MODEL_DIR [REQUESTS]     (a config.json is enough; needs vLLM and the built plug-in on the path)
"""

import json
import random
import sys
import time


def engine(model, seats, blocks, settings, **more):
    """vLLM's scheduler for `model` with the plug-in, `blocks` KV blocks of 16 tokens and `seats` seats."""
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    import outrank_vllm

    config = EngineArgs(
        model=model, skip_tokenizer_init=True, load_format="dummy", dtype="float32", max_model_len=1024, max_num_seqs=seats,
        max_num_batched_tokens=1024, enable_prefix_caching=False, enforce_eager=True, async_scheduling=False, block_size=16,
        additional_config={"outrank": settings}, scheduler_cls="outrank_vllm.make", **more,
    ).create_engine_config()  # fmt: skip
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=1, dtype=torch.float32)
    kv = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    return outrank_vllm.make(
        vllm_config=config, kv_cache_config=kv, structured_output_manager=StructuredOutputManager(config),
        include_finished_set=False, log_stats=False, block_size=16,
    )  # fmt: skip


def request(name, prompt, limit, length=None, text=None, recorded=False):
    """A request of `prompt` tokens whose answer is cut at `limit`."""
    from vllm import SamplingParams
    from vllm.v1.request import Request

    extra = {"outrank.length": length, "outrank.prompt": text, "outrank.recorded": recorded}
    params = SamplingParams(max_tokens=limit, extra_args={k: v for k, v in extra.items() if v})
    params.update_from_generation_config({}, 2) if hasattr(params, "update_from_generation_config") else None
    return Request(request_id=name, prompt_token_ids=[5] * prompt, sampling_params=params, pooling_params=None)


def step(scheduler, lengths):
    """One step; every request that is through with its prompt emits a token, the end token at its length. Returns the names of
    those that ended, and the output of schedule()."""
    from vllm.v1.outputs import ModelRunnerOutput

    output = scheduler.schedule()
    names = list(output.num_scheduled_tokens)
    sampled = []
    for name in names:
        it = scheduler.requests[name]
        done = it.num_computed_tokens >= it.num_tokens
        last = it.num_output_tokens + 1 >= lengths[name]
        sampled.append([2 if last else 7] if done else [])
    result = ModelRunnerOutput(
        req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)}, sampled_token_ids=sampled
    )  # fmt: skip
    ended = []
    for outputs in scheduler.update_from_output(output, result).values():
        ended += [it.request_id for it in outputs.outputs if it.finish_reason is not None]
    return ended, output


def free_blocks(scheduler):
    return scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def churn(model, count):
    """`count` requests with random aborts and caps, tiny KV: all end, none twice, all blocks come back."""
    from vllm.v1.request import RequestStatus

    scheduler = engine(model, 8, 96, {"policy": "outrank", "ranker": "shipped"})
    rng, before = random.Random(7), free_blocks(scheduler)
    lengths, ended, alive, made, preempted, aborted = {}, {}, [], 0, 0, 0
    while len(ended) < count:
        while made < count and len(alive) < 40:
            name = f"r{made}"
            lengths[name] = min(int(rng.expovariate(1 / 30)) + 1, 400)
            text = f"Question {made}: " + "why " * rng.randrange(1, 30)
            scheduler.add_request(request(name, rng.randrange(1, 200), rng.choice([5, 40, 400]), text=text))
            alive.append(name)
            made += 1
        over, output = step(scheduler, lengths)
        preempted += len(output.preempted_req_ids or ())
        if alive and rng.random() < 0.1:
            victim = rng.choice(alive)
            if victim not in over:
                scheduler.finish_requests(victim, RequestStatus.FINISHED_ABORTED)
                aborted += 1
                over = over + [victim]
        for name in over:
            ended[name] = ended.get(name, 0) + 1
            alive.remove(name)
    while scheduler.has_requests():
        step(scheduler, lengths)
    assert set(ended.values()) == {1} and len(ended) == count, "a request ended twice, or never"
    assert free_blocks(scheduler) == before, f"{before - free_blocks(scheduler)} blocks lost"
    status = json.loads(scheduler._core.status())
    assert status["waiting"] == status["running"] == 0, status
    print(f"churn: {count} requests, {aborted} aborted, {preempted} preemptions: all ended once, all {before} blocks free; {status}")


def order(model):
    """With one seat, waiting requests start in the order of their length; the first to come holds the seat."""
    scheduler = engine(model, 1, 400, {"policy": "oracle"})
    sizes = [50, 200, 3, 90, 20]
    lengths = {f"r{i}": size for i, size in enumerate(sizes)}
    for i, size in enumerate(sizes):
        scheduler.add_request(request(f"r{i}", 10, 400, length=size))
    ended = []
    while scheduler.has_requests():
        ended += step(scheduler, lengths)[0]
    assert ended == ["r2", "r4", "r0", "r3", "r1"], ended
    print("order: by length,", ended)


def bound(model):
    """Whoever arrives more than patience_s after a long request does not start before it, however many short ones come."""
    patience_s = 0.4
    scheduler = engine(model, 1, 400, {"policy": "outrank", "outrank": {"patience_s": patience_s, "max_preemptions_per_step": 0}})
    lengths, arrived, started = {"long": 50}, {}, []
    texts = {"long": "Write a story of 3000 words about the sea.", "short": "Answer yes or no: is 7 prime?"}

    def arrive(name, tokens, kind):
        lengths[name], arrived[name] = tokens, time.monotonic()
        scheduler.add_request(request(name, 10, 400, text=texts[kind]))

    for i in range(60):
        arrive(f"first{i}", 8, "short")
    arrive("long", 50, "long")
    at = 0
    while "long" not in started:
        _, output = step(scheduler, lengths)
        started += [it.req_id for it in output.scheduled_new_reqs]
        time.sleep(0.001)
        if len(scheduler.waiting) < 60:  # the stream of short ones never ends
            arrive(f"later{at}", 8, "short")
            at += 1
        assert time.monotonic() - arrived["long"] < 60, "starved"
    ahead = [arrived[name] - arrived["long"] for name in started if name.startswith("later")]
    assert len(ahead) > 5, "nobody overtook it: the test shows nothing"
    assert max(ahead) <= patience_s + 0.02, f"overtaken by one that came {max(ahead):.2f} s later"
    print(f"bound: overtaken by {len(ahead)}, the last of which came {max(ahead):.2f} s later (patience {patience_s} s)")


def seats(model):
    """A burst of short requests takes the seat of an endless one, which then ends all the same."""
    settings = {"policy": "outrank", "decode_s": 0.02, "outrank": {"min_gain_services": 0.01, "switch_cost_factor": 0.0, "max_preemptions_per_step": 1}}
    scheduler = engine(model, 1, 400, settings)
    lengths = {"long": 300}
    scheduler.add_request(request("long", 10, 400, text="Write a story of 3000 words about the sea."))
    time.sleep(0.2)
    for _ in range(5):
        step(scheduler, lengths)
    for i in range(10):
        lengths[f"s{i}"] = 3
        scheduler.add_request(request(f"s{i}", 10, 400, text="Answer yes or no: is 7 prime?"))
    time.sleep(0.2)
    ended, preempted = [], []
    while scheduler.has_requests():
        over, output = step(scheduler, lengths)
        ended += over
        preempted += list(output.preempted_req_ids or ())
    assert "long" in preempted and preempted.count("long") <= 2, preempted
    assert ended[-1] == "long" and len(ended) == 11, ended
    print(f"seats: the long request lost its seat {preempted.count('long')} time(s), then ended; {scheduler._core.status()}")


def gather(model):
    """While many wait, freed seats gather: several requests start in one step, and few seats idle, for a few steps at most."""

    def run(share):
        scheduler = engine(model, 256, 60000, {"policy": "outrank", "outrank": {"gather_share": share}})
        lengths, starts, idle = {}, [], []
        for i in range(900):
            lengths[f"r{i}"] = 40 + i % 97
            scheduler.add_request(request(f"r{i}", 4, 400))
        while len(scheduler.waiting) >= 40:
            _, output = step(scheduler, lengths)
            if scheduler.waiting and len(lengths) - len(scheduler.waiting) > 260:  # after the first seats were taken
                starts.append(len(output.scheduled_new_reqs))
                idle.append(256 - len(output.num_scheduled_tokens))
        while scheduler.has_requests():
            step(scheduler, lengths)
        return starts, idle

    starts, idle = run(1 / 64)
    alone, never = run(0.0)
    share = lambda starts: sum(n for n in starts if n < 4) / sum(starts)
    assert max(never) == 0, "a free seat is given away at once"
    assert 0 < max(idle) <= 3, f"{max(idle)} seats idle"
    held = max(map(len, "".join("h" if n else " " for n in idle).split()))
    assert held <= 8, f"held for {held} steps"
    assert share(starts) < 0.5 * share(alone), (share(starts), share(alone))
    assert sum(n > 0 for n in starts) < sum(n > 0 for n in alone), "as many steps with a prompt as without it"
    print(f"gather: {sum(n > 0 for n in starts)} of {len(starts)} steps start requests, {sum(n > 0 for n in alone)} of {len(alone)} without; "
          f"{sum(idle) / len(idle):.2f} seats idle on average")


class Timed:
    """Notes how long each call of a class's method takes, until stopped."""

    def __init__(self, cls, name):
        self.cls, self.name, self.method, self.took = cls, name, getattr(cls, name), []

        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return self.method(*args, **kwargs)
            finally:
                self.took.append(time.perf_counter() - start)

        setattr(cls, name, call)

    def stop(self):
        setattr(self.cls, self.name, self.method)
        return self.took


def published(model):
    """`ltr` takes seats at once, and promotes who has missed its threshold of steps for a quantum of steps."""
    settings = {"policy": "ltr", "learn": False, "ltr": {"threshold_steps": 12, "quantum_steps": 4}}
    scheduler = engine(model, 1, 400, settings)
    scheduler.add_request(request("long", 10, 400, text="Write a story of 3000 words about the sea."))
    lengths, ran = {"long": 30}, []
    time.sleep(0.2)
    for at in range(200):
        if at == 3 or (at > 3 and at % 4 == 0 and at < 80):  # a stream of short ones that fills the seat
            lengths[f"s{at}"] = 5
            scheduler.add_request(request(f"s{at}", 10, 400, text="Answer yes or no: is 7 prime?"))
            time.sleep(0.05)
        if not scheduler.has_requests():
            break
        ran += step(scheduler, lengths)[1].num_scheduled_tokens
    turns = "".join("L" if name == "long" else "s" for name in ran)
    assert turns.startswith("LLLsss"), turns
    promoted = [len(turn) for turn in turns[3:].split("s") if turn]
    assert promoted and promoted[0] == 4, f"a promotion lasts {promoted}: {turns}"
    misses = len(turns[3:].split("L")[0])
    assert misses == 12, f"promoted after {misses} steps: {turns}"
    status = json.loads(scheduler._core.status())
    print(f"published: {turns}; {status['promotions']} promotions, {status['seat_preemptions']} seats taken")


def broken(model):
    """A vLLM that lacks what the plug-in touches gets its own scheduler; a hook that fails leaves vLLM serving by arrival."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from outrank_vllm import contract
    from outrank_vllm._core import PanicException

    contract.METHODS["no_such_method"] = []
    assert type(engine(model, 1, 400, {})) is Scheduler
    del contract.METHODS["no_such_method"]
    hooks = ("submit", "order", "victims", "gathers", "planned", "measured", "ended")
    for hook, error in [*((hook, RuntimeError) for hook in hooks), ("order", PanicException)]:
        scheduler = engine(model, 2, 400, {"policy": "sjf"})
        lengths = {f"r{i}": 20 for i in range(12)}
        for name in list(lengths)[:6]:
            scheduler.add_request(request(name, 10, 400, text="Why?"))
        for _ in range(3):
            step(scheduler, lengths)

        class Failing:
            def __init__(self, core):
                self.core = core

            def __getattr__(self, name):
                return self.fail if name == hook else getattr(self.core, name)

            def fail(self, *_):
                raise error(f"{hook} fails for the test")

        scheduler._core, ended = Failing(scheduler._core), []
        for name in list(lengths)[6:]:
            scheduler.add_request(request(name, 10, 400, text="Why?"))
        while scheduler.has_requests():
            ended += step(scheduler, lengths)[0]
        assert scheduler._off and sorted(ended) == sorted(lengths), (hook, ended)
        if hook in ("submit", "order"):
            assert sorted(ended[:2]) == ["r0", "r1"] and ended[-1] in ("r10", "r11"), (hook, ended)
    print("broken: a missing method gives vLLM's own scheduler; after a failing hook all 12 end")


def liberties(model):
    """What a client writes into extra_args, whatever it is, does not turn the plug-in off."""
    scheduler = engine(model, 1, 400, {"policy": "oracle"})
    written = [{"outrank.length": "long"}, {"outrank.length": -1}, {"outrank.prompt": 7, "outrank.recorded": []}, {"outrank.length": 3}]
    for number, extra in enumerate(written):
        it = request(f"r{number}", 10, 400)
        it.sampling_params.extra_args = extra
        scheduler.add_request(it)
    ended = []
    while scheduler.has_requests():
        ended += step(scheduler, {f"r{number}": 5 for number in range(4)})[0]
    assert not scheduler._off and ended == ["r3", "r0", "r1", "r2"], ended
    print(f"liberties: {len(written) - 1} absurd extra_args count as not said")


def refused(model):
    """What is not supported is refused at start-up, in words."""
    cases = [({"polcy": "ltr"}, {}, "polcy"), ({"policy": "mlfq"}, {}, "allowed here"), ({"ranker": "/no/such"}, {}, "/no/such")]
    cases.append(({}, {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}}, "KV transfer"))
    cases.append(({}, {"pipeline_parallel_size": 2}, "pipeline"))
    for settings, more, word in cases:
        try:
            engine(model, 1, 400, settings, **more)
        except ValueError as error:
            assert word in str(error), error
        else:
            raise AssertionError(f"{settings} {more} was accepted")
    print(f"refused: {len(cases)} unsupported settings, each named in the message")


def cost(model):
    """Time that the plug-in adds to a call of schedule() with so many waiting, 256 seats, in steady decode with scores in."""
    for waiting in (100, 1000, 10000):
        scheduler = engine(model, 256, 60000, {"policy": "outrank", "learn": False})
        lengths = {}
        for i in range(256 + waiting):
            lengths[f"r{i}"] = 900
            scheduler.add_request(request(f"r{i}", 10, 900, text=f"Question {i}: " + "why " * (i % 30)))
        while json.loads(scheduler._core.status())["scored"] < 256 + waiting:
            scheduler._order(time.monotonic())
            time.sleep(0.01)
        for _ in range(3):
            step(scheduler, lengths)
        below, whole = Timed(type(scheduler).__mro__[1], "schedule"), Timed(type(scheduler), "schedule")
        for _ in range(300):
            step(scheduler, lengths)
        stock = [1e6 * took for took in below.stop()]
        ours = [1e6 * took - inner for took, inner in zip(whole.stop(), stock)]
        q = lambda v, p: sorted(v)[int(p * (len(v) - 1))]
        print(f"cost: {waiting} waiting: plug-in median {q(ours, .5):.0f} us, p99 {q(ours, .99):.0f} us; vLLM's own schedule() median {q(stock, .5):.0f} us")


if __name__ == "__main__":
    model, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10000
    order(model)
    refused(model)
    broken(model)
    liberties(model)
    published(model)
    seats(model)
    gather(model)
    bound(model)
    churn(model, count)
    cost(model)
