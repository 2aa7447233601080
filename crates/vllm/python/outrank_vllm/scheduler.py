"""The scheduler class: vLLM's own, whose priorities outrank sets."""

import functools
import heapq
import threading
import time

from outrank_vllm import log, metrics
from outrank_vllm._core import PanicException
from outrank_vllm.contract import SIDE_QUEUES


@functools.cache
def ordered(stock):
    """The subclass of vLLM's scheduler class `stock`."""

    class OutrankScheduler(stock):
        def __init__(self, core, **arguments):
            super().__init__(**arguments)
            self._core, self._off, self._paused, self._gathers = core, False, [], False
            # What admission compares with is the former since 0.32.
            self._limit = "max_num_active_reqs" if hasattr(self, "max_num_active_reqs") else "max_num_running_reqs"
            model, parallel = self.vllm_config.model_config, self.vllm_config.parallel_config
            if model.skip_tokenizer_init:
                log.warning("outrank: no tokenizer: only requests with extra_args['outrank.prompt'] are scored")
            else:
                threading.Thread(target=self._detokenize, args=(model,), name="outrank-prompts", daemon=True).start()
            metrics.publish(lambda: self._core.publish(), getattr(parallel, "data_parallel_index", 0))

        def _detokenize(self, model):
            """Turns prompts back into text beside the engine's loop, and hands them to the scoring thread."""
            from transformers import AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(
                    model.tokenizer, revision=model.tokenizer_revision, trust_remote_code=model.trust_remote_code
                )
                # The batch call of the Rust tokenizer lets go of the GIL; `batch_decode` of the Python one does not.
                rust = getattr(tokenizer, "backend_tokenizer", None)
                decode = rust.decode_batch if rust else functools.partial(tokenizer.batch_decode, skip_special_tokens=True)
                while prompts := self._core.prompts():
                    numbers, ids = prompts
                    self._core.score(numbers, decode(ids))
            finally:
                self._core.close()

        def _guarded(self, hook, *args):
            """Calls a hook. One that fails is reported once; from then on vLLM serves in order of arrival, as if there were no
            plug-in."""
            if self._off:
                return
            try:
                hook(*args)
            except (Exception, PanicException):
                self._off = True
                log.exception("outrank: %s failed; serving in order of arrival from now on", hook.__name__)
                for request in self.requests.values():
                    request.priority = 0
                self._heapify()

        def _heapify(self):
            for waiting in (self.waiting, *(getattr(self, name, None) for name in SIDE_QUEUES)):
                if waiting:
                    heapq.heapify(waiting._heap)

        def add_request(self, request):
            """Gives a new request its priority, and has its prompt scored."""
            self._guarded(self._core.submit, time.monotonic(), request)
            super().add_request(request)

        def schedule(self, *args, **kwargs):
            """Orders the queue, frees seats where it pays, and lets vLLM schedule: nobody new while free seats gather."""
            self._gathers = False
            self._guarded(self._order, time.monotonic())
            seats = getattr(self, self._limit)
            if self._gathers:
                setattr(self, self._limit, len(self.running))
            try:
                output = super().schedule(*args, **kwargs)
            finally:
                setattr(self, self._limit, seats)
            for request in self._paused:
                self.waiting.add_request(request)
                output.preempted_req_ids = (output.preempted_req_ids or set()) | {request.request_id}
            self._paused = []
            self._guarded(self._core.planned, time.monotonic(), output)
            return output

        def _order(self, now):
            if self._core.order(now, self.running):
                self._heapify()
            if self.waiting:
                free = max(0, getattr(self, self._limit) - len(self.running))
                self._free_seats(now, free)
                self._gathers = self._core.gathers(free) and not self._paused

        def _free_seats(self, now, free):
            """Takes seats from those that should lose them. They stay out of the queue until this step is planned."""
            for request in self._core.victims(now, free):
                if request not in self.running:
                    continue
                self.running.remove(request)
                # vLLM puts it into the queue: into one apart, so that the real heap need not be built anew.
                heap, self.waiting._heap = self.waiting._heap, self._paused
                try:
                    self._preempt_request(request, now)
                finally:
                    self.waiting._heap = heap
                self._core.paused(now, request)

        def update_from_output(self, scheduler_output, *args, **kwargs):
            """Lets vLLM take in the output of a step, and measures the step."""
            result = super().update_from_output(scheduler_output, *args, **kwargs)
            self._guarded(self._core.measured, time.monotonic(), scheduler_output, bool(self.running))
            return result

        def _free_request(self, request, *args, **kwargs):
            """Every end of a request comes by here."""
            self._guarded(self._core.ended, time.monotonic(), request)
            return super()._free_request(request, *args, **kwargs)

        def shutdown(self, *args, **kwargs):
            """Ends the thread that detokenizes."""
            self._core.close()
            return super().shutdown(*args, **kwargs)

    return OutrankScheduler
