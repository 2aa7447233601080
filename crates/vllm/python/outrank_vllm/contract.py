"""What the plug-in touches of vLLM. Checked when it starts, and by tests on the sources of many versions."""

import inspect

#: Methods of Scheduler that are overridden or called, with the parameters that are passed by position.
METHODS = {
    "add_request": ["request"],
    "schedule": [],
    "update_from_output": ["scheduler_output", "model_runner_output"],
    "_free_request": ["request"],
    "_preempt_request": ["request", "timestamp"],
    "shutdown": [],
}
#: Attributes that Scheduler.__init__ sets.
ATTRIBUTES = ["waiting", "running", "requests", "max_num_running_reqs"]
#: Waiting requests outside `waiting`, by version; those that exist are ordered too.
SIDE_QUEUES = ["skipped_waiting", "kv_holding_waiting"]
#: Attributes that Request.__init__ sets, and properties. Read in crates/vllm/src/python.rs, as is what follows.
REQUEST = ["request_id", "priority", "arrival_time", "prompt_token_ids", "num_prompt_tokens", "num_output_tokens",
           "max_tokens", "status", "sampling_params"]  # fmt: skip
#: Fields of SchedulerOutput that are read.
OUTPUT = ["scheduled_new_reqs", "scheduled_cached_reqs", "num_scheduled_tokens", "total_num_scheduled_tokens",
          "preempted_req_ids"]  # fmt: skip
#: Fields of NewRequestData and of CachedRequestData.
NEW, CACHED = ["req_id"], ["resumed_req_ids"]
STATUSES = ["FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED"]


def missing_at_runtime(stock):
    """What the installed vLLM lacks, in words; `stock` is its scheduler class."""
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
    from vllm.v1.core.sched.request_queue import PriorityRequestQueue
    from vllm.v1.request import RequestStatus

    missing = []
    for name, wanted in METHODS.items():
        method = getattr(stock, name, None)
        if method is None or list(inspect.signature(method).parameters)[1 : len(wanted) + 1] != wanted:
            missing.append(f"Scheduler.{name}({', '.join(wanted)})")
    read = {RequestStatus: STATUSES, SchedulerOutput: OUTPUT, NewRequestData: NEW, CachedRequestData: CACHED}
    for cls, names in read.items():
        there = {*dir(cls), *getattr(cls, "__dataclass_fields__", ())}
        missing += [f"{cls.__name__}.{name}" for name in names if name not in there]
    if not hasattr(PriorityRequestQueue(), "_heap"):
        missing.append("PriorityRequestQueue._heap")
    return missing
