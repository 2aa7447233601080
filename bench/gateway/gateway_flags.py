"""The flags and files of `outrank serve --upstream` that the scripts here need, in one place."""
from pathlib import Path

# Whether the configuration of tenants names the upstreams too, so that --upstream is not given.
CONFIG_NAMES_UPSTREAM = False


def wide(requests):
    """So many requests at once, without a limit that matters."""
    return ["--window", str(requests), "--queue", str(requests)]


def bounded(window, queue):
    """At most `window` in flight upstream, and `queue` waiting."""
    return ["--window", str(window), "--queue", str(queue)]


def journal(path):
    return ["--journal", str(path)]


def tenants(folder, names, window, queue, upstream=None, upstream_key=None):
    """Flags for tenants with a key each, and the keys by name."""
    import hashlib
    keys = {name: f"sk-secret-of-{name}-51b7e9" for name in names}
    tables = [f'[[tenants]]\nname = "{name}"\nkey_sha256 = ["{hashlib.sha256(key.encode()).hexdigest()}"]\n' for name, key in keys.items()]
    file = Path(folder) / "outrank.toml"
    file.write_text("\n".join(tables))
    return ["--config", str(file), *bounded(window, queue)], keys
