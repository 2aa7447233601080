"""A scheduler for plugin.py: the plug-in, started anew with the policy, seats and KV of each run; with `stock` it stands aside.

Under `stock` the queue is vLLM's own first-come-first-served one and every method goes straight to vLLM's class. A run says
what it wants in `extra_args["bench.run"]` of its requests; the scheduler switches when it has no requests. For every step it
logs what the batch held, when it was done, and the time of schedule() in vLLM and in the plug-in.
"""

import json
import time
from collections import deque

from outrank_vllm._core import Core
from outrank_vllm.contract import SIDE_QUEUES
from outrank_vllm.scheduler import ordered

FIELDS = ["done_s", "took_s", "idle", "prefill_tokens", "prefills", "decodes", "context_tokens", "waiting", "running",
          "preempted", "vllm_us", "plugin_us"]  # fmt: skip


def settings(policy, rankers):
    """Settings of the plug-in by the name of a run's policy; `rankers` is a folder."""
    trained = f"{rankers}/trained.outrank"
    return {
        "stock": {"policy": "fcfs"},
        "oracle": {"policy": "oracle"},
        "ltr": {"policy": "ltr", "ranker": trained, "learn": False},  # as published: trained once
        "outrank": {"policy": "outrank", "ranker": trained},
        "cold": {"policy": "outrank", "ranker": f"{rankers}/cold.outrank"},
        "shipped": {"policy": "outrank", "ranker": "shipped"},
        "none": {"policy": "outrank", "ranker": "none"},
    }[policy]


def logged(stock):
    """The subclass of vLLM's scheduler class that logs its steps."""

    class Logged(stock):
        _vllm_s, _done_s = 0.0, None

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
                self._steps.append([start, output.total_num_scheduled_tokens - decodes, len(scheduled) - decodes, decodes, context,
                                    len(self.waiting), len(self.running), len(output.preempted_req_ids or ()), self._vllm_s, 0.0])  # fmt: skip
            return output

        def update_from_output(self, scheduler_output, *args, **kwargs):
            now = time.monotonic()
            result = super().update_from_output(scheduler_output, *args, **kwargs)
            if scheduler_output.total_num_scheduled_tokens and self._steps:
                start, *what, vllm_s, plugin_s = self._steps.popleft()
                idle = self._done_s is None or start >= self._done_s
                took_s = now - (start if idle else self._done_s)
                self._lines.append([round(now, 5), round(took_s, 6), int(idle), *what, round(1e6 * vllm_s), round(1e6 * plugin_s, 1)])
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
                about = self._run | {"fields": FIELDS, "status": json.loads(self._core.status())}
                with open(config.additional_config["bench"]["log"], "a") as out:
                    out.write(json.dumps(about) + "\n")
                    out.writelines(json.dumps(line) + "\n" for line in self._lines)
            self._lines = []

        def add_request(self, request):
            run = request.sampling_params.extra_args["bench.run"]
            if run != self._run and not self.requests:
                self._switch(run)
            return (stock if self._plain else plugin).add_request(self, request)

        def schedule(self, *args, **kwargs):
            if self._plain:
                return stock.schedule(self, *args, **kwargs)
            start = time.monotonic()
            output = plugin.schedule(self, *args, **kwargs)
            if self._steps and output.total_num_scheduled_tokens:
                self._steps[-1][-1] = time.monotonic() - start - self._vllm_s
            return output

        def update_from_output(self, *args, **kwargs):
            result = (stock if self._plain else plugin).update_from_output(self, *args, **kwargs)
            if self._lines and not self.requests:
                self._write()
            return result

        def _free_request(self, *args, **kwargs):
            return (stock if self._plain else plugin)._free_request(self, *args, **kwargs)

    return Switching(Core('{"policy": "fcfs"}', config.scheduler_config.max_num_seqs, False), **arguments)
