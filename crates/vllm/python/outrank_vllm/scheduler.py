"""The scheduler class: vLLM's own, whose priorities outrank sets."""

import functools
import heapq
import queue
import threading
import time

from vllm.v1.request import RequestStatus

from outrank_vllm import log, metrics
from outrank_vllm.contract import SIDE_QUEUES

REPORT_TOKENS_STEPS = 8  # steps between two reports of the tokens that running requests have generated
MAX_DETOKENIZE_PROMPTS = 64  # prompts turned into text at once
END = {RequestStatus.FINISHED_STOPPED: "stopped", RequestStatus.FINISHED_LENGTH_CAPPED: "capped"}


def extra(request):
    """What the client passed for outrank in `extra_args`: `outrank.prompt` (text to score), `outrank.length` (true length, for
    `oracle`), `outrank.recorded` (true where max_tokens is that length and the answer always reaches it)."""
    return getattr(request.sampling_params, "extra_args", None) or {}


def guarded(hook):
    """A hook that fails is reported once; from then on vLLM serves in order of arrival, as if there were no plug-in."""

    @functools.wraps(hook)
    def call(self, *args):
        if self._off:
            return
        try:
            hook(self, *args)
        except Exception:
            self._off = True
            log.exception("outrank: %s failed; serving in order of arrival from now on", hook.__name__)
            for request in self.requests.values():
                request.priority = 0
            self._heapify()

    return call


@functools.cache
def ordered(stock):
    """The subclass of vLLM's scheduler class `stock`."""

    class OutrankScheduler(stock):
        def __init__(self, core, **arguments):
            super().__init__(**arguments)
            self._prompts, self._off = queue.SimpleQueue(), False
            self._begin(core)
            model, parallel = self.vllm_config.model_config, self.vllm_config.parallel_config
            self._tokenized = not model.skip_tokenizer_init
            if self._tokenized:
                threading.Thread(target=self._detokenize, args=(model,), name="outrank-prompts", daemon=True).start()
            else:
                log.warning("outrank: no tokenizer: only requests with extra_args['outrank.prompt'] are scored")
            metrics.publish(lambda: self._core.status(), getattr(parallel, "data_parallel_index", 0))

        def _begin(self, core):
            """Forgets everything, and goes by `core`."""
            self._core, self._numbers, self._by_number = core, {}, {}
            self._next, self._step, self._updated_s, self._paused = 0, 0, None, []

        def _detokenize(self, model):
            """Turns prompts back into text beside the engine's loop, and hands them to the scoring thread."""
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(
                model.tokenizer, revision=model.tokenizer_revision, trust_remote_code=model.trust_remote_code
            )
            # The batch call of the Rust tokenizer lets go of the GIL; `batch_decode` of the Python one does not.
            rust = getattr(tokenizer, "backend_tokenizer", None)
            decode = rust.decode_batch if rust else functools.partial(tokenizer.batch_decode, skip_special_tokens=True)
            while True:
                jobs = [self._prompts.get()]
                while len(jobs) < MAX_DETOKENIZE_PROMPTS and not self._prompts.empty():
                    jobs.append(self._prompts.get())
                if None in jobs:
                    return
                for (number, _), text in zip(jobs, decode([ids for _, ids in jobs])):
                    self._core.score(number, text)

        def add_request(self, request):
            """Gives a new request its number and priority, and has its prompt scored."""
            self._arrived(request)
            super().add_request(request)

        @guarded
        def _arrived(self, request):
            if request.request_id in self._numbers:
                return
            number, self._next, said = self._next, self._next + 1, extra(request)
            length = said.get("outrank.length")
            request.priority = self._core.submit(
                time.monotonic(), number, request.num_prompt_tokens, request.max_tokens or 1,
                None if length is None else int(length), bool(said.get("outrank.recorded")),
            )  # fmt: skip
            self._numbers[request.request_id], self._by_number[number] = number, request
            if text := said.get("outrank.prompt"):
                self._core.score(number, str(text))
            elif request.prompt_token_ids and self._tokenized:
                self._prompts.put((number, list(request.prompt_token_ids)))

        def schedule(self, *args, **kwargs):
            """Orders the queue, frees seats where it pays, and lets vLLM schedule."""
            self._order(time.monotonic())
            output = super().schedule(*args, **kwargs)
            for request in self._paused:
                self.waiting.add_request(request)
                output.preempted_req_ids = (output.preempted_req_ids or set()) | {request.request_id}
            self._paused = []
            self._note(output, time.monotonic())
            return output

        def _set(self, changed):
            """Sets priorities of requests without a seat; a running one keeps the one that it started with."""
            for number, priority in changed:
                if (request := self._by_number.get(number)) and request.status != RequestStatus.RUNNING:
                    request.priority = priority
            return bool(changed)

        def _heapify(self):
            for waiting in (self.waiting, *(getattr(self, name, None) for name in SIDE_QUEUES)):
                if waiting:
                    heapq.heapify(waiting._heap)

        @guarded
        def _order(self, now):
            self._step += 1
            if self._step % REPORT_TOKENS_STEPS == 0 or self._core.follows_every_token():
                numbers = self._numbers
                self._core.generated([(numbers[r.request_id], r.num_output_tokens) for r in self.running])
            if self._set(self._core.changed(now)):
                self._heapify()
            if self.waiting:
                self._free_seats(now)

        def _free_seats(self, now):
            """Takes seats from those that should lose them. They stay out of the queue until this step is planned."""
            seats = getattr(self, "max_num_active_reqs", self.max_num_running_reqs)  # the former since 0.32
            for number in self._core.victims(now, max(0, seats - len(self.running))):
                request = self._by_number.get(number)
                if request is None or request.status != RequestStatus.RUNNING or request not in self.running:
                    continue
                self.running.remove(request)
                self._paused.append(request)
                # vLLM puts it into the queue: into an empty one, so that the real heap need not be built anew.
                heap, self.waiting._heap = self.waiting._heap, []
                try:
                    self._preempt_request(request, now)
                finally:
                    self.waiting._heap = heap
                self._set(self._core.paused(now, [number]))

        @guarded
        def _note(self, output, now):
            numbers = self._numbers
            if output.preempted_req_ids and self._set(
                self._core.paused(now, [numbers[name] for name in output.preempted_req_ids if name in numbers])
            ):
                heapq.heapify(self.waiting._heap)
            started = [numbers[data.req_id] for data in output.scheduled_new_reqs if data.req_id in numbers]
            started += [numbers[name] for name in output.scheduled_cached_reqs.resumed_req_ids if name in numbers]
            if started:
                self._core.started(started)
            if output.total_num_scheduled_tokens:
                self._core.stepped()

        def update_from_output(self, scheduler_output, model_runner_output, *args, **kwargs):
            """Lets vLLM take in the output of a step, and measures the step."""
            result = super().update_from_output(scheduler_output, model_runner_output, *args, **kwargs)
            self._measure(scheduler_output, time.monotonic())
            return result

        @guarded
        def _measure(self, output, now):
            tokens, batch = output.total_num_scheduled_tokens, len(output.num_scheduled_tokens)
            if tokens and self._updated_s is not None:
                self._core.step_took(now - self._updated_s, tokens - batch, batch)
            self._updated_s = now if self.running else None  # what follows an idle time says nothing of a step

        def _free_request(self, request, *args, **kwargs):
            """Every end of a request comes by here."""
            self._left(request)
            return super()._free_request(request, *args, **kwargs)

        @guarded
        def _left(self, request):
            number = self._numbers.pop(request.request_id, None)
            if number is None:
                return
            self._by_number.pop(number, None)
            end = END.get(request.status, "aborted")
            if end == "capped" and extra(request).get("outrank.recorded"):
                end = "stopped"
            self._core.ended(time.monotonic(), number, request.num_output_tokens, end)

        def shutdown(self, *args, **kwargs):
            """Ends the thread that detokenizes."""
            self._prompts.put(None)
            return super().shutdown(*args, **kwargs)

    return OutrankScheduler
