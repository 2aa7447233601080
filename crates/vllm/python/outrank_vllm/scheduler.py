"""The scheduler class: vLLM's own, whose priorities outrank sets."""

import functools
import heapq
import json
import queue
import threading
import time

from vllm.v1.request import RequestStatus

from outrank_vllm import log
from outrank_vllm.contract import SIDE_QUEUES

REPORT_TOKENS_STEPS = 8  # steps between two reports of the tokens that running requests have generated
REPORT_STATUS_S = 10.0
LOG_CALLS = 512  # calls of schedule() to a line of the log
END = {RequestStatus.FINISHED_STOPPED: "stopped", RequestStatus.FINISHED_LENGTH_CAPPED: "capped"}


def extra(request):
    """What the client passed for outrank in `extra_args`: `outrank.prompt` (text to score), `outrank.length` (true length, for
    `oracle-sjf`), `outrank.recorded` (true where max_tokens is that length and the answer always reaches it)."""
    return getattr(request.sampling_params, "extra_args", None) or {}


@functools.cache
def ordered(stock):
    """The subclass of vLLM's scheduler class `stock`."""

    class OutrankScheduler(stock):
        def __init__(self, core, settings, **arguments):
            super().__init__(**arguments)
            self._core, self._numbers, self._by_number = core, {}, {}
            self._next, self._step, self._updated_s, self._idle, self._said_s = 0, 0, None, True, 0.0
            self._log = open(settings["log"], "a") if settings.get("log") else None
            self._calls = []
            self._prompts = queue.SimpleQueue()
            model = self.vllm_config.model_config
            if model.skip_tokenizer_init:
                log.warning("outrank: no tokenizer: only requests with extra_args['outrank.prompt'] are scored")
            else:
                threading.Thread(target=self._detokenize, args=(model,), name="outrank-prompts", daemon=True).start()

        def _detokenize(self, model):
            """Turns prompts back into text beside the engine's loop, and hands them to the scoring thread."""
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(
                model.tokenizer, revision=model.tokenizer_revision, trust_remote_code=model.trust_remote_code
            )
            while (job := self._prompts.get()) is not None:
                self._core.score(job[0], tokenizer.decode(job[1], skip_special_tokens=True))

        def add_request(self, request):
            """Gives a new request its number and priority, and has its prompt scored."""
            if request.request_id not in self._numbers:
                number, self._next = self._next, self._next + 1
                said = extra(request)
                length = said.get("outrank.length")
                request.priority = self._core.submit(
                    time.monotonic(), number, request.num_prompt_tokens, request.max_tokens or 1,
                    None if length is None else int(length), bool(said.get("outrank.recorded")),
                )  # fmt: skip
                self._numbers[request.request_id], self._by_number[number] = number, request
                if text := said.get("outrank.prompt"):
                    self._core.score(number, str(text))
                elif request.prompt_token_ids and not self.vllm_config.model_config.skip_tokenizer_init:
                    self._prompts.put((number, request.prompt_token_ids))
            super().add_request(request)

        def schedule(self, *args, **kwargs):
            """Orders the queue, frees seats where it pays, and lets vLLM schedule."""
            start = time.monotonic()
            self._order(start)
            paused = self._free_seats(start) if self.waiting else []
            middle = time.monotonic()
            output = super().schedule(*args, **kwargs)
            scheduled = time.monotonic()
            for request in paused:
                self.waiting.add_request(request)
                output.preempted_req_ids = (output.preempted_req_ids or set()) | {request.request_id}
            self._note(output, scheduled)
            if self._log:
                self._time(middle - start + time.monotonic() - scheduled, scheduled - middle)
            return output

        def _set(self, changed):
            """Sets priorities of requests without a seat; a running one keeps the one that it started with."""
            for number, priority in changed:
                if (request := self._by_number.get(number)) and request.status != RequestStatus.RUNNING:
                    request.priority = priority
            return bool(changed)

        def _order(self, now):
            self._step += 1
            if self._step % REPORT_TOKENS_STEPS == 0:
                numbers = self._numbers
                self._core.generated([(numbers[r.request_id], r.num_output_tokens) for r in self.running])
            changed = self._core.changed(now)
            if not changed:
                return
            self._set(changed)
            for waiting in (self.waiting, *(getattr(self, name, None) for name in SIDE_QUEUES)):
                if waiting:
                    heapq.heapify(waiting._heap)

        def _free_seats(self, now):
            """Takes seats from those that should lose them. They stay out of the queue until this step is planned."""
            paused = []
            for number in self._core.victims(now, self.max_num_running_reqs - len(self.running)):
                request = self._by_number.get(number)
                if request is None or request.status != RequestStatus.RUNNING or request not in self.running:
                    continue
                self.running.remove(request)
                # vLLM puts it into the queue: into an empty one, so that the real heap need not be built anew.
                heap, self.waiting._heap = self.waiting._heap, []
                self._preempt_request(request, now)
                self.waiting._heap = heap
                paused.append(request)
                self._set(self._core.paused(now, [number]))
            return paused

        def _note(self, output, now):
            numbers = self._numbers
            if output.preempted_req_ids and self._set(
                self._core.paused(now, [numbers[name] for name in output.preempted_req_ids if name in numbers])
            ):
                heapq.heapify(self.waiting._heap)
            started = [numbers[data.req_id] for data in output.scheduled_new_reqs]
            started += [numbers[name] for name in output.scheduled_cached_reqs.resumed_req_ids]
            if started:
                self._core.started(started)
            if now - self._said_s > REPORT_STATUS_S and self.requests:
                self._said_s = now
                log.info("outrank: %s", self._core.status())

        def update_from_output(self, scheduler_output, model_runner_output, *args, **kwargs):
            """Measures the step, and lets vLLM take in its output."""
            result = super().update_from_output(scheduler_output, model_runner_output, *args, **kwargs)
            now, tokens = time.monotonic(), scheduler_output.total_num_scheduled_tokens
            if tokens and self._updated_s is not None and not self._idle:
                batch = len(scheduler_output.num_scheduled_tokens)
                self._core.step_took(now - self._updated_s, tokens - batch, batch)
            self._updated_s, self._idle = now, not self.running
            return result

        def _free_request(self, request, *args, **kwargs):
            """Every end of a request comes by here."""
            number = self._numbers.pop(request.request_id, None)
            if number is not None:
                self._by_number.pop(number, None)
                end = END.get(request.status, "aborted")
                if end == "capped" and extra(request).get("outrank.recorded"):
                    end = "stopped"
                self._core.ended(time.monotonic(), number, request.num_output_tokens, end)
            return super()._free_request(request, *args, **kwargs)

        def shutdown(self, *args, **kwargs):
            self._prompts.put(None)
            return super().shutdown(*args, **kwargs)

        def _time(self, ours, stock_s):
            self._calls.append((len(self.waiting), round(ours * 1e6, 1), round(stock_s * 1e6, 1)))
            if len(self._calls) >= LOG_CALLS or not self.requests:
                line = {"t_s": time.monotonic(), "calls": self._calls, "status": json.loads(self._core.status())}
                self._log.write(json.dumps(line) + "\n")
                self._log.flush()
                self._calls = []

    return OutrankScheduler
