"""The `openai` client (3.54.0) as a judge of the gateway: chat and completions, whole and streamed, and every error a client meets.

usage: .venv/judges/bin/python bench/gateway/judge_openai.py --outrank BIN [--mode hold]
"""
import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import openai

import gateway_flags
import harness

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def expect(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, and it went through")


MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


@check
def models_are_listed(site):
    models = [model.id for model in site.client.models.list()]
    assert "mock" in models, models
    assert site.client.models.retrieve("mock").id == "mock"


@check
def a_chat_comes_whole_with_usage(site):
    answer = site.client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=7)
    assert answer.choices[0].finish_reason == "length" and answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens == 7, answer.usage


@check
def a_chat_comes_as_a_stream_with_usage_only_if_asked(site):
    for usage in (False, True):
        more = {"stream_options": {"include_usage": True}} if usage else {}
        chunks = list(site.client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=5, stream=True, **more))
        text = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
        assert len(text) == 5, text
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
        counted = [chunk.usage for chunk in chunks if chunk.usage]
        assert (len(counted) == 1 and counted[0].completion_tokens == 5) if usage else not counted, counted


@check
def completions_come_whole_and_as_a_stream(site):
    answer = site.client.completions.create(model="mock", prompt="Once upon a time", max_tokens=4)
    assert answer.usage.completion_tokens == 4 and answer.choices[0].text
    chunks = list(site.client.completions.create(model="mock", prompt="Once upon a time", max_tokens=4, stream=True))
    assert sum(bool(chunk.choices[0].text) for chunk in chunks if chunk.choices) == 4


@check
def parts_tools_and_unknown_fields_go_through(site):
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "this?"}]}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    answer = site.client.chat.completions.create(model="mock", messages=parts, max_tokens=2, tools=[tool], seed=1, temperature=0.5,
                                                 extra_body={"top_k": 5, "chat_template_kwargs": {"x": True}})
    assert answer.usage.completion_tokens == 2


@check
def the_raw_response_tells_its_place(site):
    raw = site.client.chat.completions.with_raw_response.create(model="mock", messages=MESSAGES, max_tokens=2)
    names = {name.lower() for name in raw.headers}
    assert "x-request-id" in names, names
    assert any(name.startswith("x-outrank-") for name in names), names


@check
def a_request_id_of_the_client_comes_back(site):
    raw = site.client.chat.completions.with_raw_response.create(model="mock", messages=MESSAGES, max_tokens=2,
                                                                extra_headers={"x-request-id": "mine-4711"})
    assert raw.headers["x-request-id"] == "mine-4711", raw.headers


@check
def a_request_without_messages_is_a_bad_request(site):
    error = expect(openai.BadRequestError, lambda: site.client.chat.completions.create(model="mock", messages=[], max_tokens=2))
    assert error.status_code == 400 and error.body and error.body.get("message"), error.body


@check
def an_unknown_model_is_not_found(site):
    expect(openai.NotFoundError, lambda: site.client.chat.completions.create(model="no-such", messages=MESSAGES, max_tokens=2))


@check
def an_unknown_route_is_not_found(site):
    expect(openai.NotFoundError, lambda: site.client.post("/no/such/route", body={}, cast_to=object))


@check
def an_upstream_that_fails_is_tried_again_and_then_told(site):
    harness.ask(site.upstream.port, "/mock/fault", {"fault": "status:500", "count": 1})
    answer = site.client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=2)
    assert answer.usage.completion_tokens == 2
    harness.ask(site.upstream.port, "/mock/fault", {"fault": "status:500"})
    error = expect(openai.InternalServerError, lambda: site.client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=2))
    assert error.status_code >= 500
    site.heal()


@check
def a_stream_that_breaks_off_is_an_error_and_not_an_end(site):
    harness.ask(site.upstream.port, "/mock/fault", {"fault": "cut:3", "count": 1})
    seen, failed, finished = 0, None, False
    try:
        for chunk in site.client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=9, stream=True):
            seen += bool(chunk.choices and chunk.choices[0].delta.content)
            finished |= bool(chunk.choices and chunk.choices[0].finish_reason)
    except (openai.APIError, Exception) as error:  # whatever the client raises, it must be something
        failed = error
    assert failed is not None and not finished, f"{seen} tokens, then a quiet end"
    assert seen == 3, f"{seen} tokens before the break, 3 were sent"
    site.heal()


@check
def a_bad_request_of_the_upstream_is_passed_on_and_not_tried_again(site):
    harness.ask(site.upstream.port, "/mock/reset", {})
    harness.ask(site.upstream.port, "/mock/fault", {"fault": "status:400"})
    expect(openai.BadRequestError, lambda: site.client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=2))
    assert '"received":1,' in harness.ask(site.upstream.port, "/mock/stats")[2].replace(" ", "")
    site.heal()


@check
def a_client_that_gives_up_frees_the_upstream(site):
    harness.ask(site.upstream.port, "/mock/fault", {"fault": "hang", "count": 1})
    impatient = site.client.with_options(timeout=0.5, max_retries=0)
    expect(openai.APITimeoutError, lambda: impatient.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=2))
    for _ in range(40):
        stats = harness.ask(site.upstream.port, "/mock/stats")[2]
        if '"left":1' in stats.replace(" ", ""):
            break
        time.sleep(0.05)
    else:
        raise AssertionError(f"the upstream still works 2 s after its client has left: {stats}")
    site.heal()


@check
def two_hundred_at_once_are_all_answered(site):
    async def all_of_them():
        client = openai.AsyncOpenAI(base_url=f"{site.gateway.url}/v1", api_key="none", max_retries=0, timeout=60)

        async def one(number):
            count = 0
            stream = await client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=1 + number % 9, stream=True)
            async for chunk in stream:
                count += bool(chunk.choices and chunk.choices[0].delta.content)
            assert count == 1 + number % 9, (number, count)
        try:
            await asyncio.gather(*(one(number) for number in range(200)))
        finally:
            await client.close()
    asyncio.run(all_of_them())


@check
def keys_are_asked_for_and_wrong_ones_refused(site):
    with tempfile.TemporaryDirectory() as folder, harness.servers() as started:
        flags, keys = gateway_flags.tenants(folder, ["a", "b"], 8, 64)
        gateway = harness.outrank(started, folder, site.binary, [site.upstream], site.mode, flags=flags)
        make = lambda key: openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)
        ask = lambda client: client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=2)
        assert ask(make(keys["a"])).usage.completion_tokens == 2
        for wrong in ("wrong", keys["a"].upper(), keys["a"][:-1], keys["a"] + "x"):
            expect(openai.AuthenticationError, lambda: ask(make(wrong)))
        expect(openai.AuthenticationError, lambda: make("wrong").models.list())
        status, _, _ = harness.ask(gateway.port, "/v1/chat/completions", harness.chat(), headers={"authorization": "Bearer " + "x" * 70_000})
        assert status in (401, 413, 431), status


@check
def an_overloaded_gateway_says_when_to_come_again(site):
    with tempfile.TemporaryDirectory() as folder, harness.servers() as started:
        slow = harness.mock(started, folder, ttft_ms=1000, seats=1)
        gateway = harness.outrank(started, folder, site.binary, [slow], "hold", flags=gateway_flags.bounded(1, 1))

        async def flood():
            client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=60)
            asks = (client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=1) for _ in range(6))
            found = await asyncio.gather(*asks, return_exceptions=True)
            await client.close()
            return found
        found = asyncio.run(flood())
        refused = [error for error in found if isinstance(error, openai.RateLimitError)]
        assert len(refused) == 4 and len(found) - len(refused) == 2, found
        assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
        # A client that waits as told gets through.
        patient = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=5, timeout=60)
        assert patient.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=1).usage.completion_tokens == 1


class Site:
    def __init__(self, binary, mode, upstream, gateway):
        self.binary, self.mode, self.upstream, self.gateway = binary, mode, upstream, gateway
        self.client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=30)

    def heal(self):
        """No more faults; waits until the gateway takes the upstream for healthy again."""
        harness.ask(self.upstream.port, "/mock/reset", {})
        end = time.monotonic() + 40
        while time.monotonic() < end:
            if harness.ask(self.gateway.port, "/v1/chat/completions", harness.chat(), timeout_s=40)[0] == 200:
                break
            time.sleep(0.2)
        harness.ask(self.upstream.port, "/mock/reset", {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outrank", type=Path, required=True)
    parser.add_argument("--mode", default="hold")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as logs, harness.servers() as started:
        upstream = harness.mock(started, logs)
        gateway = harness.outrank(started, logs, args.outrank, [upstream], args.mode, body=harness.chat())
        site = Site(args.outrank, args.mode, upstream, gateway)
        for function in CHECKS:
            try:
                function(site)
                print(f"ok      {function.__name__.replace('_', ' ')}", flush=True)
            except Exception as error:  # every check is reported
                failed += 1
                print(f"FAILED  {function.__name__.replace('_', ' ')}: {type(error).__name__}: {str(error)[:600]}", flush=True)
                site.heal()
    print(f"openai {openai.__version__}, mode {args.mode}: {len(CHECKS) - failed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
