"""Whether the time of a refusal tells anything of the key that was wrong.

usage: python3 bench/gateway/refusals.py --outrank BIN [--requests 4000] [--log FILE]

A gateway with many keys is asked with keys that are wrong in different ways, in turn, in random order, over one connection. The time of
each refusal is taken, and each kind is compared with a key that is wrong from its first character, by Welch's t-test on what is
left of the times without their slowest tenth, where neighbours on the machine show (dudect compares so). |t| above 4.5 is taken for a leak. As a proof that the
test can see, a request without a key must differ: for it nothing is hashed, which its client knows anyway.
"""
import argparse
import http.client
import math
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import gateway_flags
import harness

LEAK_T = 4.5
KEPT = 0.9


def kinds(key):
    """Wrong keys by kind. All that can be compared with the right one are as long as it is, but for those that are to be of another length."""
    swap = lambda at: key[:at] + ("x" if key[at] != "x" else "y") + key[at + 1:]
    return {"wrong from the first character": swap(0), "wrong in the middle": swap(len(key) // 2), "wrong in the last character": swap(len(key) - 1),
            "right but for its case": key.upper(), "one character short": key[:-1], "one character long": key + "x", "empty": "", "unlike any": "z" * len(key)}


def ask(connection, headers):
    began = time.perf_counter_ns()
    connection.request("GET", "/v1/models", headers=headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status, (time.perf_counter_ns() - began) / 1e3


def welch(one, other):
    """t of two samples, their slowest tenth left out."""
    one, other = (sorted(sample)[:int(len(sample) * KEPT)] for sample in (one, other))
    spread = statistics.variance(one) / len(one) + statistics.variance(other) / len(other)
    return (statistics.mean(one) - statistics.mean(other)) / math.sqrt(spread)


def measure(gateway, cases, requests, seed):
    connection = http.client.HTTPConnection(harness.HOST, gateway.port, timeout=30)
    times = {name: [] for name in cases}
    order = [name for name in cases for _ in range(requests)]
    random.Random(seed).shuffle(order)
    for name in order:
        headers, expected = cases[name]
        status, took_us = ask(connection, headers)
        assert status == expected, f"{name}: {status}"
        times[name].append(took_us)
    connection.close()
    return times


def too_long(gateway, key, sends):
    """The status of a request whose body is too long, and comes or does not."""
    connection = http.client.HTTPConnection(harness.HOST, gateway.port, timeout=30)
    body = b"{" + b" " * (5 << 20) if sends else None
    connection.request("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {key}", "content-type": "application/json", "content-length": str(1 + (5 << 20))})
    status = connection.getresponse().status
    connection.close()
    return status


def revoke(gateway, file, name):
    """Takes a tenant out of the settings, and has them read again."""
    tables = file.read_text().split("[[tenants]]")
    file.write_text("[[tenants]]".join(table for table in tables if f'name = "{name}"' not in table))
    gateway.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 10
    while "reloaded" not in gateway.log.read_text():
        if time.monotonic() > end:
            raise SystemExit("the settings were not reloaded")
        time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outrank", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=4000, help="of each kind")
    parser.add_argument("--tenants", type=int, default=64)
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    lines, leaks, blind = [], [], True

    def tell(line):
        lines.append(line)
        print(line, flush=True)
    with tempfile.TemporaryDirectory() as folder, harness.servers() as started:
        upstream = "http://127.0.0.1:9"  # nobody there: nothing is forwarded
        flags, keys = gateway_flags.tenants(folder, [f"tenant-{nth}" for nth in range(args.tenants)], 8, 64)
        gateway = harness.outrank(started, folder, args.outrank, [upstream], "hold", flags=flags, ready="/health/live")
        names = list(keys)
        bearer = lambda key: {"authorization": f"Bearer {key}"}
        cases = {name: (bearer(key), 401) for name, key in kinds(keys[names[0]]).items()}
        cases |= {f"as above, {name}, of the last tenant": (bearer(key), 401) for name, key in list(kinds(keys[names[-1]]).items())[:3]}
        revoke(gateway, Path(folder) / "outrank.toml", names[1])
        cases["revoked"] = (bearer(keys[names[1]]), 401)
        cases["no key"] = ({}, 401)
        cases["another scheme"] = ({"authorization": "Basic " + keys[names[0]]}, 401)
        cases["a right key"] = (bearer(keys[names[0]]), 200)
        times = measure(gateway, cases, args.requests, 7)
        facts = harness.binary_facts(args.outrank)
        tell(f"{facts['version']} at {facts['commit']}, {args.tenants} tenants, {args.requests} requests of each kind in random order over one connection; times in us")
        base = times["wrong from the first character"]
        tell(f"{'kind':58} {'p10':>7} {'median':>7} {'p90':>7} {'t':>7}")
        for name, sample in times.items():
            ordered = sorted(sample)
            at = lambda share: ordered[int(len(ordered) * share)]
            t = 0.0 if sample is base else welch(sample, base)
            tell(f"{name:58} {at(0.1):7.1f} {at(0.5):7.1f} {at(0.9):7.1f} {t:7.2f}")
            blind &= not (name == "no key" and abs(t) > LEAK_T)
            # Kinds that are told apart by what the client sent, not by what the gateway knows, may differ.
            if name.startswith(("wrong", "as above", "right but", "unlike", "revoked")) and abs(t) > LEAK_T:
                leaks.append(name)
        # A wrong key is refused before anything of the body has come.
        tell(f"a body of 5 MiB with a wrong key: {too_long(gateway, 'x' * 20, False)}; with a right one: {too_long(gateway, keys[names[0]], True)}")
    tell(f"told apart by time: {', '.join(leaks) or 'none'}")
    if blind:
        tell("no key was not told apart either: the test sees too little, take more --requests")
    if args.log:
        args.log.parent.mkdir(parents=True, exist_ok=True)
        args.log.write_text("\n".join(lines) + "\n")
    sys.exit(bool(leaks) or blind)


if __name__ == "__main__":
    main()
