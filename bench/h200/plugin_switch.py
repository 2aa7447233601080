"""A scheduler for plugin.py: the plug-in, started anew with the policy, seats and KV of each run; with `stock` it stands aside.

Under `stock` the queue is vLLM's own first-come-first-served one and every method goes straight to vLLM's class. Under `flip`, which is
`outrank`, the plug-in stands aside in every other block of a few steps, in an order drawn for each two of them: the machine's speed,
which wanders for seconds, is then the same with it and without it. What the plug-in's hooks would have done in a block without it, they
do in the step after, and all of their time counts there. A run says what it wants in `extra_args["bench.run"]` of its requests; the
scheduler switches when it has no requests. For every step it logs what the batch held, when it was done, the time of schedule() in
vLLM and in the plug-in, the time of the plug-in's other hooks since the step before, and whether the plug-in took part.
"""

import json
import random
import time
from collections import deque

from outrank_vllm._core import Core
from outrank_vllm.contract import SIDE_QUEUES
from outrank_vllm.scheduler import ordered

FIELDS = ["done_s", "took_s", "idle", "prefill_tokens", "prefills", "decodes", "context_tokens", "waiting", "running",
          "preempted", "vllm_us", "plugin_us", "hooks_us", "plugin"]  # fmt: skip
FLIP_STEPS = 8


def settings(policy, rankers):
    """Settings of the plug-in by the name of a run's policy; `rankers` is a folder."""
    trained = f"{rankers}/trained.outrank"
    return {
        "stock": {"policy": "fcfs"},
        "oracle": {"policy": "oracle"},
        "ltr": {"policy": "ltr", "ranker": trained, "learn": False},  # as published: trained once
        "outrank": {"policy": "outrank", "ranker": trained},
        "flip": {"policy": "outrank", "ranker": trained},
        "cold": {"policy": "outrank", "ranker": f"{rankers}/cold.outrank"},
        "shipped": {"policy": "outrank", "ranker": "shipped"},
        "none": {"policy": "outrank", "ranker": "none"},
    }[policy]


def logged(stock):
    """The subclass of vLLM's scheduler class that logs its steps."""

    class Logged(stock):
        _vllm_s, _logged_s, _done_s = 0.0, 0.0, None  # in vLLM's schedule(); in it and in logging it; when the last step was done

        def schedule(self, *args, **kwargs):
            start = time.monotonic()
            output = super().schedule(*args, **kwargs)
            self._vllm_s = time.monotonic() - start
            if output.total_num_scheduled_tokens:
                scheduled = output.num_scheduled_tokens.values()
                decodes = len(scheduled)
                if output.total_num_scheduled_tokens != decodes:
                    decodes = sum(n == 1 for n in scheduled)
                context = sum(request.num_computed_tokens for request in self.running)
                batch = [output.total_num_scheduled_tokens - decodes, len(scheduled) - decodes, decodes, context, len(self.waiting),
                         len(self.running), len(output.preempted_req_ids or ())]  # fmt: skip
                self._steps.append({"start_s": start, "batch": batch, "vllm_s": self._vllm_s, "plugin_s": 0.0, "hooks_s": 0.0, "on": 0})
            self._logged_s = time.monotonic() - start
            return output

        def update_from_output(self, scheduler_output, *args, **kwargs):
            now = time.monotonic()
            result = super().update_from_output(scheduler_output, *args, **kwargs)
            if scheduler_output.total_num_scheduled_tokens and self._steps:
                step = self._steps.popleft()
                idle = self._done_s is None or step["start_s"] >= self._done_s
                took_s = now - (step["start_s"] if idle else self._done_s)
                self._lines.append([round(now, 5), round(took_s, 6), int(idle), *step["batch"], round(1e6 * step["vllm_s"]),
                                    round(1e6 * step["plugin_s"], 1), round(1e6 * step["hooks_s"], 1), step["on"]])  # fmt: skip
                self._done_s = now
            return result

    return Logged


def make(**arguments):
    """The switching scheduler; called by vLLM."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
    from vllm.v1.core.sched.scheduler import Scheduler

    config = arguments["vllm_config"]
    stock = logged(AsyncScheduler if config.scheduler_config.async_scheduling else Scheduler)
    plugin = ordered(stock)

    class Switching(plugin):
        def __init__(self, core, **arguments):
            self._run, self._plain, self._held = None, True, []
            self._steps, self._lines = deque(), []
            super().__init__(core, **arguments)

        def _switch(self, run):
            """Starts over as the run wants it."""
            self._run, self._plain, self._done_s = run, run["policy"] == "stock", None
            self._off, self._aside, self._postponed, self._hooks_s = False, False, [], 0.0
            self._flips = flips() if run["policy"] == "flip" else None
            self._steps.clear()
            chosen = settings(run["policy"], config.additional_config["bench"]["rankers"])
            self._core = Core(json.dumps(chosen), run["seats"], False)
            self.policy = SchedulingPolicy.FCFS if self._plain else SchedulingPolicy.PRIORITY
            for name in ("waiting", *SIDE_QUEUES):
                if hasattr(self, name):
                    setattr(self, name, create_request_queue(self.policy))
            self.max_num_running_reqs = self.max_num_active_reqs = run["seats"]
            pool = self.kv_cache_manager.block_pool
            pool.free_blocks(self._held)
            free = pool.get_num_free_blocks()
            self._held = pool.get_new_blocks(max(0, free - run["kv_blocks"])) if run["kv_blocks"] else []

        def _write(self):
            """Appends the steps of the run that has ended to its log."""
            if self._run:
                about = self._run | {"fields": FIELDS, "status": json.loads(self._core.status()), "failed": self._off}
                with open(config.additional_config["bench"]["log"], "a") as out:
                    out.write(json.dumps(about) + "\n")
                    out.writelines(json.dumps(line) + "\n" for line in self._lines)
            self._lines = []

        def _guarded(self, hook, *args):
            if self._aside:
                self._postponed.append((hook, args))
                return
            start = time.monotonic()
            super()._guarded(hook, *args)
            self._hooks_s += time.monotonic() - start

        def _flip(self):
            """Stands aside, or takes part again and does what it has missed."""
            self._aside = next(self._flips)
            if not self._aside:
                missed, self._postponed = self._postponed, []
                for hook, args in missed:
                    if hook.__name__ != "_order":
                        self._guarded(hook, *args)

        def add_request(self, request):
            run = request.sampling_params.extra_args["bench.run"]
            if run != self._run and not self.requests:
                self._switch(run)
            return (stock if self._plain else plugin).add_request(self, request)

        def schedule(self, *args, **kwargs):
            if self._plain:
                return stock.schedule(self, *args, **kwargs)
            other_s, self._hooks_s = self._hooks_s, 0.0
            start = time.monotonic()
            if self._flips:
                self._flip()
            output = plugin.schedule(self, *args, **kwargs)
            if self._steps and output.total_num_scheduled_tokens:
                own_s = time.monotonic() - start - self._logged_s
                self._steps[-1] |= {"plugin_s": own_s, "hooks_s": other_s, "on": int(not self._aside)}
            self._hooks_s = 0.0
            return output

        def update_from_output(self, *args, **kwargs):
            result = (stock if self._plain else plugin).update_from_output(self, *args, **kwargs)
            if self._lines and not self.requests:
                self._write()
            return result

        def _free_request(self, *args, **kwargs):
            return (stock if self._plain else plugin)._free_request(self, *args, **kwargs)

    return Switching(Core('{"policy": "fcfs"}', config.scheduler_config.max_num_seqs, False), **arguments)


def flips():
    """Whether the plug-in stands aside, step by step: one of every two blocks, drawn by lot."""
    lots = random.Random(7)
    while True:
        first = lots.random() < 0.5
        yield from [first] * FLIP_STEPS + [not first] * FLIP_STEPS
