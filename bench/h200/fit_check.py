"""Which form of step cost fits the steps that `reality.py` logged, and how well. Needs numpy only.

usage: python3 fit_check.py steps.jsonl.gz
"""

import collections
import gzip
import json
import sys

import numpy as np

KNEE = 128  # decoding sequences above which each costs more
STALL = 3e-3  # an engine that waited longer than this for a step was held up by the GPU
READY = 1.8e-3  # one that waited shorter was held up by its own CPU work
BLOCK = 16  # steps to a block: evens out that one step's CPU work delays the step before


def load(path):
    """The steps of each phase, in order, as arrays by field."""
    phases = collections.defaultdict(list)
    with gzip.open(path, "rt") as lines:
        for line in lines:
            record = json.loads(line)
            phases[record["phase"]].append(record)
    fields = next(iter(phases.values()))[0].keys() - {"phase"}
    return {
        phase: {f: np.array([np.nan if r[f] is None else r[f] for r in records], float) for f in fields}
        for phase, records in phases.items()
    }


def join(parts):
    """One dict of arrays from several."""
    parts = list(parts)
    return {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}


def rows(steps, mask):
    return {field: values[mask] for field, values in steps.items()}


def squares(matrix, y):
    """Least squares of the relative error; returns coefficients and relative residuals."""
    coefficients = np.linalg.lstsq(matrix / y[:, None], np.ones(len(y)), rcond=None)[0]
    return coefficients, matrix @ coefficients / y - 1


def report(title, names, coefficients, residuals):
    terms = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, coefficients))
    size = np.abs(residuals)
    print(f"{title} (n={len(size)}): {terms}\n    |rel. error| median {np.median(size):.3f}, p90 {np.quantile(size, 0.9):.3f}")


def ones(steps):
    return np.ones(len(steps["took_s"]))


def plain(steps):
    """The four terms of the brief."""
    return np.c_[ones(steps), steps["prefill_tokens"], steps["decodes"], steps["context_tokens"]]


PLAIN = ("const", "prefill_tokens", "decodes", "context_tokens")


def decode_terms(steps):
    decodes = steps["decodes"]
    return np.c_[ones(steps), decodes, np.maximum(decodes - KNEE, 0), steps["context_tokens"]]


def prefill_terms(steps):
    context = steps["context_tokens"] - steps["prefill_context"]
    return np.c_[ones(steps), steps["prefill_tokens"], steps["decodes"], context, steps["prefill_pairs"]]


def lags(phases):
    """Which step does the gap between two schedule() calls measure: the one scheduled then (lag 0), or one before?

    Linear in that step's composition, over the phases that mix prefills of many sizes with decodes.
    """
    mixed = [s for p, s in phases.items() if p.startswith(("sweep-context", "sweep-prefill-beside", "burst"))]
    y = np.concatenate([np.diff(s["t_s"])[2:] for s in mixed])
    terms = [np.c_[prefill_terms(s), s["prefills"] > 0] for s in mixed]
    lagged = [np.concatenate([t[2 - lag : len(t) - 1 - lag] for t in terms]) for lag in (0, 1, 2)]
    for name, x in (("0", lagged[0]), ("1", lagged[1]), ("2", lagged[2]), ("0 and 1", np.hstack(lagged[:2]))):
        error = x @ np.linalg.lstsq(x, y, rcond=None)[0] - y
        print(f"schedule() gaps, lag {name}: rms error {1e3 * np.sqrt(np.mean(error**2)):.2f} ms of {1e3 * y.mean():.2f} ms")


def gpu_times(phases):
    """Fits the steps whose time was the GPU's: the engine waited for this step and for the one before."""
    parts = []
    for steps in phases.values():
        before = np.r_[np.nan, steps["blocked_s"][:-1]]
        parts.append(rows(steps, (steps["idle"] == 0) & (before > STALL) & (steps["blocked_s"] > STALL)))
    clean = join(parts)
    decode, prefill = rows(clean, clean["prefills"] == 0), rows(clean, clean["prefills"] > 0)
    d, residuals = squares(decode_terms(decode), decode["took_s"])
    report("GPU, decode only", ("const", "decodes", f"decodes over {KNEE}", "context"), d, residuals)
    p, residuals = squares(prefill_terms(prefill), prefill["took_s"])
    report("GPU, with prefill", ("const", "prefill_tokens", "decodes", "decode context", "pairs"), p, residuals)
    for low, high in ((1, 512), (513, 1536), (1537, 4096)):
        part = (prefill["prefill_tokens"] >= low) & (prefill["prefill_tokens"] <= high)
        if part.any():
            print(f"    prefill {low}-{high}: n={part.sum()}, median {np.median(residuals[part]):+.3f}")
    return d, p


def cpu_work(steps):
    """The engine's own work for each step: from the result of step k-2 to the end of k's launch. NaN where not busy."""
    seen = np.r_[np.nan, np.nan, steps["done_s"][:-2]]
    idle = (steps["idle"] > 0) | np.r_[True, steps["idle"][:-1] > 0]
    return np.where(idle, np.nan, steps["launched_s"] - seen)


def cpu_times(phases):
    """Fits that work: scheduling, launching the forward pass and the sampling, taking in the result of step k-2."""
    parts = [s | {"cpu": cpu_work(s), "before": np.r_[np.nan, s["blocked_s"][:-1]]} for s in phases.values()]
    work = join(rows(s, np.isfinite(s["cpu"])) for s in parts)
    sampling = float(np.median(work["before"][(work["prefills"] > 0) & (work["before"] < READY)]))
    print(f"CPU, launch of the sampling and fetch of the result: median {sampling:.5f}")
    result = {"sampling": sampling}
    for name, mask in (("graph", work["prefills"] == 0), ("eager", work["prefills"] > 0)):
        part = rows(work, mask)
        matrix = np.c_[ones(part), part["decodes"]]
        cpu = part["cpu"] + sampling
        result[name] = np.linalg.lstsq(matrix, cpu, rcond=None)[0]
        report(f"CPU, {name} step", ("const", "decodes"), result[name], matrix @ result[name] / cpu - 1)
        launch = 1e3 * (part["launched_s"] - part["t_s"] - part["schedule_s"])
        print("    launch of the forward pass, ms: quantiles 0.1, 0.5, 0.9", *np.quantile(launch, (0.1, 0.5, 0.9)).round(2))
    return result


def cpu_model(steps, cpu):
    matrix = np.c_[ones(steps), steps["decodes"]]
    return np.where(steps["prefills"] > 0, matrix @ cpu["eager"], matrix @ cpu["graph"])


def cpu_speed(steps, cpu):
    """How much longer than usual the CPU took for the prefills of this phase (1 without any)."""
    real = cpu_work(steps) + cpu["sampling"]
    mask = (steps["prefills"] > 0) & np.isfinite(real)
    return real[mask].sum() / cpu_model(steps, cpu)[mask].sum() if mask.any() else 1.0


def pipelined(steps, gpu, cpu, speed=1.0):
    """Replays vLLM's loop with two steps in flight over the compositions of a phase; returns when each is done.

    schedule(k) starts when step k-2 is done. Scheduling and launching k take CPU time while k-1 is on the GPU; then the
    engine waits for k-1. A decode is one graph that starts when launched; a prefill's kernels start as they are launched
    and cannot end before the launch does.
    """
    decode, prefill = gpu
    cost = np.where(steps["prefills"] > 0, prefill_terms(steps) @ prefill, decode_terms(steps) @ decode)
    work = speed * cpu_model(steps, cpu)
    now = free = 0.0  # when the engine may schedule, and when the GPU is free
    done = np.zeros(len(cost))
    for k in range(len(cost)):
        ready = now + work[k]
        if k:
            done[k - 1] = now = max(free, ready)
        free = max(free + cost[k], ready) if steps["prefills"][k] else max(free, ready) + cost[k]
    done[-1] = free
    return done


def serial_terms(steps, free):
    """Terms of a cost that depends on the step alone; the first `free` prefill tokens hide behind the launch."""
    eager = (steps["prefills"] > 0).astype(float)
    return np.c_[
        (1 - eager)[:, None] * decode_terms(steps),
        eager,
        eager * np.maximum(steps["prefill_tokens"] - free, 0),
        eager * steps["decodes"],
        eager * steps["context_tokens"],
    ]


SERIAL = ("const", "decodes", f"decodes over {KNEE}", "context", "prefill: const", "tokens over the free ones", "decodes",
          "context")  # fmt: skip


def blocks(values):
    """Sums of BLOCK steps each; the rest is dropped."""
    n = len(values) // BLOCK
    return values[: n * BLOCK].reshape(n, BLOCK, *values.shape[1:]).sum(axis=1)


def serial(phases):
    """Fits the cost of a step by itself to blocks of steps."""
    took = np.concatenate([blocks(s["took_s"]) for s in phases.values()])
    best = None
    for free in range(0, 1001, 50):
        matrix = np.concatenate([blocks(serial_terms(s, free)) for s in phases.values()])
        coefficients, residuals = squares(matrix, took)
        if best is None or (residuals**2).sum() < (best[2] ** 2).sum():
            best = (free, coefficients, residuals)
    free, coefficients, residuals = best
    report(f"step by itself, blocks of {BLOCK}, {free} prefill tokens free", SERIAL, coefficients, residuals)
    return free, coefficients


def main(path):
    phases = load(path)
    busy = {p: rows(s, s["idle"] == 0) for p, s in phases.items()}
    warm = join(busy.values())
    lags(phases)
    four, residuals = squares(plain(warm), warm["took_s"])
    report("plain, each step", PLAIN, four, residuals)
    sums = [np.concatenate([blocks(v) for v in values]) for values in zip(*((plain(s), s["took_s"]) for s in busy.values()))]
    four, residuals = squares(*sums)
    report(f"plain, blocks of {BLOCK}", PLAIN, four, residuals)
    gpu = gpu_times(phases)
    cpu = cpu_times(phases)
    free, alone = serial(busy)
    print("\nrelative error of the total time of each phase, and median relative error of its blocks")
    print("cpu: how much longer than usual launches took there; the last column knows it")
    print(f"{'phase':26s} {'real s':>7s} {'plain':>14s} {'by itself':>14s} {'pipelined':>14s} {'cpu':>6s} {'pipelined, cpu':>14s}")
    for phase, steps in phases.items():
        if steps["idle"].sum() > 2:
            continue  # mostly from idle
        part = rows(steps, np.arange(len(steps["idle"])) > np.argmax(steps["idle"] > 0))
        real, speed = part["took_s"], cpu_speed(part, cpu)
        guesses = [plain(part) @ four, serial_terms(part, free) @ alone]
        guesses += [np.diff(np.r_[0, pipelined(part, gpu, cpu, s)]) for s in (1.0, speed)]
        cells = [
            f"{guess.sum() / real.sum() - 1:+7.3f} {np.median(np.abs(blocks(guess) / blocks(real) - 1)):6.3f}"
            for guess in guesses
        ]
        print(f"{phase:26s} {real.sum():7.2f} {cells[0]} {cells[1]} {cells[2]} {speed:6.2f} {cells[3]}")


if __name__ == "__main__":
    main(sys.argv[1])
