"""The flags and files of `outrank serve --upstream` that the scripts here need, in one place."""

# Whether the configuration of tenants names the upstreams too, so that --upstream is not given.
CONFIG_NAMES_UPSTREAM = False


def wide(requests):
    """So many requests at once, without a limit that matters."""
    return ["--window", str(requests), "--queue", str(requests)]


def bounded(window, queue):
    """At most `window` in flight upstream, and `queue` waiting."""
    return ["--window", str(window), "--queue", str(queue)]


def tenants(folder, names, window, queue, upstream):
    """Flags for tenants with a key each, and the keys by name."""
    raise NotImplementedError
