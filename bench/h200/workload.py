"""The requests of plugin.py's runs: held-out prompts with recorded lengths (requests.sh), in one random order for all runs.

What a run's nth request was follows from the run's number and the data alone, so results need not repeat it.
"""

import gzip
import json
import random

SEED = 20261125
SHIFT = 700  # requests by which a run's first is behind that of the run before
SLICE_CAP = 1000  # tokens where the answers of a short slice are cut


def load(path, context):
    """Requests of a file of JSON lines with prompt, prompt_tokens, output_tokens; each with random token ids. Lengths fit an engine
    with `context` tokens."""
    rng = random.Random(SEED)
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    rng.shuffle(rows)
    for row in rows:
        tokens = max(4, min(row["prompt_tokens"], context // 2))
        row["ids"] = [rng.randrange(10, 30000) for _ in range(tokens)]
        row["output"] = max(2, min(row["output_tokens"], context // 2))
    return rows


def request(rows, nth, index):
    """The request `index` of the nth run of its kind."""
    return rows[(SHIFT * nth + index) % len(rows)]
