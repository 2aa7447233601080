"""outrank as vLLM's scheduler: `vllm serve MODEL --scheduler-cls outrank_vllm.make`.

Settings: `--additional-config '{"outrank": {"policy": "outrank", "ranker": "shipped", "learn": true}}'`.
"""

import logging

log = logging.getLogger("vllm.outrank")


def make(**arguments):
    """vLLM's scheduler, ordered by outrank; called by vLLM with keywords. Async or sync as vLLM is configured.

    Raises ValueError where the settings or the engine's configuration are not supported. Where vLLM lacks an attribute that
    the plug-in needs, warns and returns vLLM's own scheduler.
    """
    import json

    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    config = arguments["vllm_config"]
    stock = AsyncScheduler if config.scheduler_config.async_scheduling else Scheduler
    settings = (getattr(config, "additional_config", None) or {}).get("outrank", {})
    try:
        from outrank_vllm.contract import missing_at_runtime

        missing = missing_at_runtime(stock)
    except ImportError as error:
        missing = [str(error)]
    if missing:
        log.warning("outrank: this vLLM lacks %s: serving with its own scheduler, in its own order", ", ".join(missing))
        return stock(**arguments)
    refuse_unsupported(config)
    from outrank_vllm._core import Core
    from outrank_vllm.scheduler import ordered

    limits = config.scheduler_config
    seats = getattr(limits, "max_num_active_seqs", None) or limits.max_num_seqs
    core = Core(json.dumps(settings), seats, not config.model_config.skip_tokenizer_init)
    config.scheduler_config.policy = "priority"
    return ordered(stock)(core, **arguments)


def refuse_unsupported(config):
    """Raises ValueError for an engine whose queue is not only its own."""
    if getattr(config, "kv_transfer_config", None) is not None:
        raise ValueError("outrank: KV transfer between engines is not supported; leave out --kv-transfer-config")
    if config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError("outrank: pipeline parallelism is not supported; use tensor or data parallelism")
    if getattr(config.model_config, "runner_type", "generate") != "generate":
        raise ValueError("outrank: only text generation has answer lengths to order by; this model does not generate")
