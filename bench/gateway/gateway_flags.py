"""The flags and files of `outrank serve --upstream` that the scripts here need, in one place."""
import hashlib
from pathlib import Path

# The variable that the upstream's own key comes from.
UPSTREAM_KEY = "MOCK_UPSTREAM_KEY"


def wide(requests):
    """So many requests at once, without a limit that matters."""
    return ["--window", str(requests), "--max-queue", str(requests)]


def bounded(window, queue):
    """At most `window` in flight at each upstream, and `queue` waiting."""
    return ["--window", str(window), "--max-queue", str(queue)]


def journal(path):
    return ["--journal", str(path)]


def tenants(folder, names, window, queue):
    """Flags for tenants with a key each, and the keys by name."""
    keys = {name: f"sk-secret-of-{name}-51b7e9" for name in names}
    tables = [f'[[tenants]]\nname = "{name}"\nkey_sha256 = ["{hashlib.sha256(key.encode()).hexdigest()}"]\n' for name, key in keys.items()]
    file = Path(folder) / "outrank.toml"
    file.write_text("\n".join(tables))
    return ["--config", str(file), *bounded(window, queue)], keys
