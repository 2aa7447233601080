"""A scheduler for plugin.py: the plug-in, started anew with the policy of each run; with `stock` it stands aside.

Under `stock` every method goes straight to vLLM's own class; all priorities are equal, so its heap goes by arrival.
"""

import json

from outrank_vllm._core import Core
from outrank_vllm.scheduler import ordered


def settings(policy, trained):
    """Settings of the plug-in by the name of a run's policy."""
    if policy == "oracle":
        return {"policy": "oracle-sjf"}
    if policy in ("stock", "fcfs"):
        return {"policy": "fcfs"}
    name, ranker = policy.split("-")
    return {"policy": name, "ranker": trained if ranker == "trained" else ranker}


def make(**arguments):
    """The switching scheduler; called by vLLM."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    config = arguments["vllm_config"]
    stock = AsyncScheduler if config.scheduler_config.async_scheduling else Scheduler
    plugin = ordered(stock)

    class Switching(plugin):
        _bench_policy = "stock"

        def add_request(self, request):
            wanted = request.sampling_params.extra_args["bench.policy"]
            if wanted != self._bench_policy and not self.requests:
                trained = config.additional_config["bench"]["trained"]
                seats = config.scheduler_config.max_num_seqs
                self._core = Core(json.dumps(settings(wanted, trained)), seats)
                self._numbers, self._by_number, self._updated_s, self._idle = {}, {}, None, True
                self._bench_policy = wanted
            return (stock if self._bench_policy == "stock" else plugin).add_request(self, request)

        def schedule(self, *args, **kwargs):
            return (stock if self._bench_policy == "stock" else plugin).schedule(self, *args, **kwargs)

        def update_from_output(self, *args, **kwargs):
            return (stock if self._bench_policy == "stock" else plugin).update_from_output(self, *args, **kwargs)

    own = config.additional_config["outrank"]
    return Switching(Core(json.dumps(settings("stock", None)), config.scheduler_config.max_num_seqs), own, **arguments)
