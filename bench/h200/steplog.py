"""A scheduler for vLLM 0.24.0 that logs what every engine step held and when it was done.

Use: `scheduler_cls="steplog.StepLog"`, this folder on PYTHONPATH, and the log's path in STEPLOG_PATH. The first line of
the log describes the engine, every other line one step. All times are CLOCK_MONOTONIC seconds, so they compare with
`time.monotonic()` of the client on the same machine.

Async scheduling keeps two steps in flight: schedule(k) and the launch of step k run while step k-1 is on the GPU, then
the engine waits for step k-1. So step k takes its turn from `done` of step k-1 to `done` of step k. A gap between two
schedule() calls holds the CPU work for the step scheduled then and the GPU work of the step scheduled one call earlier.
"""

import json
import os
import time
from collections import deque

try:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
except ImportError:  # read_steps() also runs where vLLM is not installed
    AsyncScheduler = object

FIELDS = (
    "t",  # start of schedule()
    "scheduled",  # end of schedule()
    "launched",  # the forward pass was launched (CPU side)
    "done",  # the step's output reached the scheduler
    "prefill_tokens",  # tokens of requests still in prefill, recomputation after a preemption included
    "prefills",  # such requests
    "chunks",  # such requests whose prefill this step does not finish, so that they emit no token
    "prefill_context",  # tokens that those requests hold after the step
    "prefill_pairs",  # pairs of a prefilled token and a token that it attends to
    "decodes",  # requests that decode one token
    "context_tokens",  # tokens that all scheduled requests hold after the step, prefills included
    "waiting",  # requests left waiting after schedule()
    "running",  # requests that hold a seat after schedule()
    "preempted",  # requests evicted by this schedule()
)
BLOCK = 1024


class StepLog(AsyncScheduler):
    """AsyncScheduler that logs one line for every step that scheduled tokens."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._log = open(os.environ["STEPLOG_PATH"], "a")
        self._pending, self._lines = deque(), []
        config, cache = self.scheduler_config, self.cache_config
        engine = {
            "seats": config.max_num_seqs,
            "kv_blocks": cache.num_gpu_blocks,
            "block_size": self.block_size,
            "max_num_batched_tokens": config.max_num_batched_tokens,
            "scheduling_policy": str(config.policy),
            "async_scheduling": config.async_scheduling,
            "v2_model_runner": self.use_v2_model_runner,
            "prefix_caching": bool(cache.enable_prefix_caching),
            "watermark": config.watermark,
            "reserve_full_isl": config.scheduler_reserve_full_isl,
        }
        self._log.write(json.dumps({"engine": engine}) + "\n")
        self._log.flush()

    def schedule(self, *args, **kwargs):
        """Schedules, and notes what was scheduled."""
        start = time.monotonic()
        output = super().schedule(*args, **kwargs)
        if not output.total_num_scheduled_tokens:
            return output
        end = time.monotonic()
        prefill_tokens = prefills = chunks = prefill_context = pairs = decodes = context = 0
        requests = self.requests
        for request_id, n in output.num_scheduled_tokens.items():
            request = requests[request_id]
            held = request.num_computed_tokens  # schedule() has advanced it already
            context += held
            if n == 1 and held > request.num_prompt_tokens:
                decodes += 1
                continue
            prefills += 1
            prefill_tokens += n
            prefill_context += held
            pairs += n * (held - n) + n * (n + 1) // 2
            chunks += request.is_prefill_chunk
        self._pending.append([
            start, end, end, 0.0, prefill_tokens, prefills, int(chunks), prefill_context, pairs, decodes, context,
            len(self.waiting), len(self.running), len(output.preempted_req_ids or ()),
        ])  # fmt: skip
        return output

    def get_grammar_bitmask(self, scheduler_output):
        """Called right after a forward pass was launched: notes when."""
        if scheduler_output.total_num_scheduled_tokens and self._pending:
            self._pending[-1][2] = time.monotonic()
        return super().get_grammar_bitmask(scheduler_output)

    def update_from_output(self, scheduler_output, *args, **kwargs):
        """Called with the output of each step, in order: notes when."""
        now = time.monotonic()
        result = super().update_from_output(scheduler_output, *args, **kwargs)
        if scheduler_output.total_num_scheduled_tokens and self._pending:
            step = self._pending.popleft()
            step[3] = now
            self._lines.append(step)
        if len(self._lines) >= BLOCK or (self._lines and not self.requests):
            self._write()
        return result

    def _write(self):
        self._log.write("".join(json.dumps([round(v, 6) for v in line]) + "\n" for line in self._lines))
        self._log.flush()
        self._lines.clear()


def read_log(path):
    """Returns the description of the engine and the steps of a log, as dicts."""
    engine, steps = {}, []
    with open(path) as lines:
        for line in lines:
            record = json.loads(line)
            if isinstance(record, dict):
                engine = record["engine"]
            else:
                steps.append(dict(zip(FIELDS, record)))
    return engine, steps


def timed_steps(steps, phases):
    """Yields a record for every step inside one of `phases`, a list of {"phase", "start", "end"}; times from its start.

    `took_s` is the time since the step before was done. A step scheduled only after that found the engine idle: it is
    marked `idle`, and its `took_s` counts from the start of its schedule(). `blocked_s` is how long the engine waited for
    the step after it had launched the next forward pass (which includes about a millisecond of launching the sampling):
    where it is near that millisecond, the CPU held the engine up and not the GPU.
    """
    names = ("prefill_tokens", "prefills", "chunks", "prefill_context", "prefill_pairs", "decodes", "context_tokens",
             "waiting", "running", "preempted")  # fmt: skip
    previous, rest = None, deque(sorted(phases, key=lambda phase: phase["start"]))
    for step, following in zip(steps, [*steps[1:], None]):
        while rest and step["t"] > rest[0]["end"]:
            rest.popleft()
        idle = previous is None or step["t"] >= previous
        if rest and step["t"] >= rest[0]["start"]:
            start = rest[0]["start"]
            last = following is None or following["t"] >= step["done"]
            record = {"phase": rest[0]["phase"]} | {name: step[name] for name in names}
            times = {
                "took_s": step["done"] - (step["t"] if idle else previous),
                "t_s": step["t"] - start,
                "launched_s": step["launched"] - start,
                "done_s": step["done"] - start,
                "schedule_s": step["scheduled"] - step["t"],
            }
            record |= {name: round(value, 5) for name, value in times.items()}
            record["blocked_s"] = None if last else round(step["done"] - following["launched"], 5)
            record["idle"] = idle
            yield record
        previous = step["done"]
