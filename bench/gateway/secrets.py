"""Looks for prompts and keys where they must not be: sends marked ones in every way, right and wrong, and greps all that the
gateway writes at trace level (log, metrics, journal, records, error bodies).

usage: python3 bench/gateway/secrets.py --outrank BIN [--mode hold]
"""
import argparse
import json
import socket
import sys
import tempfile
import time
from pathlib import Path

import gateway_flags
import harness

PROMPT, ANSWER_OK = "zebra-prompt-8f3a", "t="
KEY_UNKNOWN, KEY_UPSTREAM = "sk-unknown-77aa55", "sk-upstream-31cc02"


def marked(name, key=None, **more):
    """A request whose every text is marked."""
    text = f"{PROMPT}-{name} please tell me"
    return {"model": "mock", "messages": [{"role": "system", "content": f"{PROMPT}-{name}-system"}, {"role": "user", "content": text}],
            "max_tokens": 2, **more}


def send(port, keys, upstream):
    """All the ways in which prompts and keys come."""
    good = keys["a"]
    ask = lambda *args, **more: harness.ask(port, *args, **more)
    bodies = []
    chat = "/v1/chat/completions"
    for stream in (False, True):
        bodies.append(ask(chat, marked(f"ok-{stream}", stream=stream, user=f"{PROMPT}-user", metadata={"x": f"{PROMPT}-meta"}), key=good))
        bodies.append(ask("/v1/completions", {"model": "mock", "prompt": f"{PROMPT}-completion", "max_tokens": 2, "stream": stream}, key=good))
    refused = [
        ask(chat, marked("bad-key"), key=KEY_UNKNOWN),
        ask(chat, marked("no-key")),
        ask(chat, marked("upper"), key=good.upper()),
        ask("/v1/models", key=KEY_UNKNOWN),
        ask(chat, json.dumps(marked("broken"))[:-5], key=good),
        ask(chat, f'{{"model": "mock", "messages": "{PROMPT}-string"}}', key=good),
        ask(chat, f'{{"model": "mock", "messages": [{{"role": "user", "content": {{"{PROMPT}-object": 1}}}}]}}', key=good),
        ask(chat, {**marked("model"), "model": f"{PROMPT}-model"}, key=good),
        ask(chat, marked("tokens", max_tokens=f"{PROMPT}-max"), key=good),
        ask(chat, f"not json at all {PROMPT}-text", key=good),
        ask(chat, marked("large", filler=PROMPT * 400_000), key=good),
        ask(chat, marked("class"), key=good, headers={"x-outrank-class": f"{PROMPT}-class"}),
        ask(f"{chat}?api_key={KEY_UNKNOWN}", marked("query"), key=good),
        ask(f"/v1/nothing/{PROMPT}-path", key=good),
        ask(chat, marked("header"), headers={"authorization": f"Basic {KEY_UNKNOWN}"}),
        ask(chat, marked("x-api-key"), headers={"x-api-key": KEY_UNKNOWN}),
    ]
    for fault in ("status:500", "status:400", "reset", "garbage", "cut:1", "malformed:1", "eof:1"):
        harness.ask(upstream.port, "/mock/fault", {"fault": fault, "count": 4})
        for stream in (False, True):
            try:
                bodies.append(ask(chat, marked(f"fault-{fault}", stream=stream), key=good, timeout_s=60))
            except Exception as error:  # a stream that breaks off
                bodies.append((0, {}, str(error)))
        harness.ask(upstream.port, "/mock/reset", {})
        heal(port, good)
    vanish(port, good)
    return bodies, refused


def heal(port, key):
    end = time.monotonic() + 40
    while time.monotonic() < end and harness.ask(port, "/v1/chat/completions", marked("heal"), key=key, timeout_s=40)[0] != 200:
        time.sleep(0.2)


def vanish(port, key):
    """Half a request, and one whose client does not wait for its answer."""
    body = json.dumps(marked("vanish", stream=True))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    for text in (head + body[:40], head + body, f"GET /{PROMPT}-raw HTTP/1.1\r\nauthorization: {key}\r\nbroken header {KEY_UNKNOWN}\r\n\r\n"):
        with socket.create_connection((harness.HOST, port), 5) as raw:
            raw.sendall(text.encode())
            time.sleep(0.05)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outrank", type=Path, required=True)
    parser.add_argument("--mode", default="hold")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, harness.servers() as started:
        folder = Path(folder)
        upstream = harness.mock(started, folder)
        flags, keys = gateway_flags.tenants(folder, ["a", "b"], 8, 64)
        journal = folder / "journal.jsonl"
        gateway = harness.outrank(started, folder, args.outrank, [f"{upstream.url} key_env={gateway_flags.UPSTREAM_KEY}"], args.mode,
                                  flags=[*flags, *gateway_flags.journal(journal)],
                                  env={gateway_flags.UPSTREAM_KEY: KEY_UPSTREAM, "OUTRANK_LOG": "trace", "RUST_LOG": "trace", "RUST_BACKTRACE": "full"})
        bodies, refused = send(gateway.port, keys, upstream)
        time.sleep(1.0)
        places = {"metrics": harness.ask(gateway.port, "/metrics")[2], "openapi": harness.ask(gateway.port, "/openapi.json")[2]}
        for _, headers, _ in bodies:
            if "x-request-id" in headers:
                path = f"/v1/outrank/requests/{headers['x-request-id']}"
                places["records"] = places.get("records", "") + harness.ask(gateway.port, path, key=keys["a"])[2]
        gateway.stop()
        places["log"] = gateway.log.read_text(errors="replace")
        places["journal"] = "".join(path.read_text(errors="replace") for path in sorted(folder.glob("journal.jsonl*")))
        places["error bodies"] = "\n".join(body for _, _, body in refused)
        places["headers of answers"] = "\n".join(str(headers) for _, headers, _ in bodies + refused)
    marks = {"prompt": PROMPT, "key of tenant a": keys["a"], "key of tenant b": keys["b"], "unknown key": KEY_UNKNOWN,
             "key of the upstream": KEY_UPSTREAM, "upper-cased key": keys["a"].upper()}
    # What a client sent as a model's name or a path may be named in its own error.
    own = ("error bodies", "headers of answers")
    failed = passed = 0
    for place, text in places.items():
        for what, mark in marks.items():
            lines = [line for line in text.splitlines() if mark in line]
            if place in own:
                lines = [line for line in lines if f"{PROMPT}-model" not in line and f"{PROMPT}-path" not in line]
            failed, passed = failed + bool(lines), passed + (not lines)
            if lines:
                print(f"FAILED  {what} in {place}, {len(lines)} lines, such as: {lines[0][:300]}")
    statuses = [status for status, _, _ in refused]
    for status, body in [(s, b) for s, _, b in refused if s < 400 and "query" not in b][:3]:
        print(f"note: accepted with {status}: {body[:120]}")
    sizes = {place: len(text) for place, text in places.items()}
    print(f"looked through {sizes} characters; statuses of bad requests {statuses}")
    for needed in ("log", "metrics", "journal"):
        if not places[needed]:
            failed += 1
            print(f"FAILED  {needed} is empty: nothing was looked at")
    print(f"secrets, mode {args.mode}: {passed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
