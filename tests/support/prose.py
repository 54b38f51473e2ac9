"""Lines of text that look like source, configuration and documentation, from a random generator."""

from __future__ import annotations

import random

# fmt: off
NOUNS = (
    "account", "batch", "cache", "client", "config", "cursor", "event", "filter", "gateway", "index",
    "job", "ledger", "metric", "node", "order", "parser", "queue", "report", "schema", "session",
    "signal", "store", "table", "token", "user", "worker", "zone",
)
VERBS = (
    "add", "build", "check", "close", "drop", "fetch", "find", "flush", "load", "merge", "open",
    "parse", "read", "send", "sort", "update",
)
# fmt: on


def make_text(rng: random.Random, kind: str, size: int) -> bytes:
    """Return lines like those in a file that ends in `.kind`, of `size` bytes or a little more."""
    lines: list[str] = []
    length = 0
    while length < size:
        lines.append(_line(rng, kind))
        length += len(lines[-1]) + 1
    return ("\n".join(lines) + "\n").encode()


def edit_text(rng: random.Random, data: bytes, kind: str) -> bytes:
    """Return the text with a few lines in one place replaced, as in a small commit."""
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines) + 1)
    lines[at : at + rng.randint(0, 3)] = [_line(rng, kind) for _ in range(rng.randint(1, 4))]
    return ("\n".join(lines) + "\n").encode()


def _line(rng: random.Random, kind: str) -> str:
    verb, noun, other = rng.choice(VERBS), rng.choice(NOUNS), rng.choice(NOUNS)
    match kind:
        case "py":
            return f"    {noun}_{other} = {verb}_{noun}({other}, limit={rng.randrange(1000)})"
        case "ts":
            return f"  const {noun} = await {verb}({other}, {rng.randrange(1000)});"
        case "yaml":
            return f"  {noun}_{other}: {rng.randrange(100000)}"
        case "css":
            return f".{noun}-{other} {{ margin: {rng.randrange(64)}px; }}"
        case "sh":
            return f'{verb} --{noun} "${{{other.upper()}:-{rng.randrange(1000)}}}"'
        case _:
            return make_sentence(rng)


def make_sentence(rng: random.Random) -> str:
    """Return one sentence for documentation or a commit message."""
    words = [rng.choice(VERBS), "the", rng.choice(NOUNS), "before the", rng.choice(NOUNS), "is ready"]
    return " ".join(words).capitalize() + f" ({rng.randrange(10000)})."
