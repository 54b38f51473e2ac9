#!/usr/bin/env python3
"""Writes the generated parts of docs/api.md: the table of problems, and every route as the code declares it.

    .venv/bin/python scripts/api_docs.py            # rewrites the page
    .venv/bin/python scripts/api_docs.py --check    # exits with 1 if the page is not what this would write

The text outside the marked parts is written by hand and stays as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from appliance.core.api import problem  # noqa: E402
from appliance.core.api.compose import declare  # noqa: E402
from appliance.core.api.declaration import JSON, NDJSON, Answer, Operation, Scope  # noqa: E402
from appliance.core.api.openapi import PATH_PARAMETERS, problems_of  # noqa: E402
from appliance.core.api.schemas import OID, Schema  # noqa: E402

PAGE = ROOT / "docs" / "api.md"
WIDTH = 110
SCOPES = {
    Scope.NOTHING: "none; needs no token",
    Scope.READ: "`read`",
    Scope.OPERATE: "`operate`",
    Scope.SOCKET: "the control socket alone",
}
EVERYWHERE = (problem.UNAUTHORIZED, problem.UNAVAILABLE, problem.STOPPING)
"""The introduction says that every route may answer with these."""


def operations() -> list[Operation]:
    """Every operation. None of them can be called, because there is no node behind them."""
    nothing = cast(Any, None)
    return declare(nothing, nothing, nothing)


def render(page: str) -> str:
    """The page with its generated parts made anew. Raises ValueError if it lacks the marks of one."""
    declared = operations()
    for name, lines in (("problems", problems()), ("routes", routes(declared)), ("types", types(declared))):
        pattern = re.compile(rf"(<!-- {name}: .*? -->\n).*?(\n<!-- end of {name} -->)", re.DOTALL)
        text = "\n".join(lines)
        page, count = pattern.subn(lambda match, text=text: f"{match[1]}\n{text}\n{match[2]}", page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{PAGE.name} has {count} parts between the marks of {name}, not one")
    return page


def problems() -> Iterator[str]:
    """The table of the kinds of problems."""
    yield "| `type` | status | title |"
    yield "|---|---|---|"
    for kind in problem.KINDS:
        yield f"| `{kind.type}` | {int(kind.status)} | {kind.title} |"


def routes(declared: Sequence[Operation]) -> Iterator[str]:
    """A table of all routes, then each with everything that is declared about it."""
    yield "| route | what it does | scope |"
    yield "|---|---|---|"
    for operation in declared:
        yield f"| [`{title(operation)}`](#{anchor(operation)}) | {operation.summary} | {SCOPES[operation.scope]} |"
    for operation in declared:
        yield ""
        yield from route(operation)


def title(operation: Operation) -> str:
    """The heading of a route."""
    return f"{operation.method} {operation.path}"


def anchor(operation: Operation) -> str:
    """What a link to the heading of a route names."""
    return re.sub(r"[^\w -]", "", title(operation).lower()).replace(" ", "-")


def route(operation: Operation) -> Iterator[str]:
    """The section of one route."""
    yield f"### {title(operation)}"
    yield ""
    yield from wrapped(f"{operation.summary}. Scope: {SCOPES[operation.scope]}. {operation.details}")
    yield ""
    yield from parameters(operation)
    yield from body(operation)
    shown: Schema | None = None
    for status, answer in operation.answers.items():
        if answer.schema is not None and answer.schema == shown:
            yield f"**{status}** {answer.description} The rest is as for the status above."
            yield ""
        else:
            yield from response(status, answer, tells=operation.tells)
        shown = answer.schema
    kinds = [kind for kind in problems_of(operation) if kind not in EVERYWHERE]
    yield "Problems: " + ", ".join(f"`{kind.name}` ({int(kind.status)})" for kind in kinds) + "."
    yield ""
    yield "```sh"
    yield curl(operation)
    yield "```"


def parameters(operation: Operation) -> Iterator[str]:
    """The table of what is in the path and in the query."""
    names = re.findall(r"{(\w+)}", operation.path)
    if names or operation.query:
        yield "| parameter | in | type | meaning |"
        yield "|---|---|---|---|"
        for name in names:
            yield f"| `{name}` | path | string | {PATH_PARAMETERS[name][0]} |"
        for parameter in operation.query:
            yield f"| `{parameter.name}` | query | {cell(parameter.schema)} | {parameter.description} |"
        yield ""


def body(operation: Operation) -> Iterator[str]:
    """The table of the keys of a body."""
    if operation.body is None:
        return
    required = operation.body["required"]
    yield "| key of the body | type | |"
    yield "|---|---|---|"
    for name, schema in operation.body["properties"].items():
        if name in required:
            yield f"| `{name}` | {cell(schema)} | required |"
        else:
            # An optional key may also be null, as the introduction says.
            kind = next(each for each in schema["type"] if each != "null")
            words = {"enum": [word for word in schema["enum"] if word is not None]} if "enum" in schema else {}
            yield f"| `{name}` | {cell({**schema, 'type': kind, **words})} | optional |"
    yield ""


def response(status: int, answer: Answer, *, tells: bool) -> Iterator[str]:
    """What one status comes with."""
    media_types = [answer.media_type, *answer.also, *([NDJSON] if tells else [])]
    yield f"**{status}** {answer.description} {' or '.join(f'`{each}`' for each in media_types)}"
    yield ""
    for name, header in answer.headers.items():
        yield f"- Header `{name}`: {header.description}"
    if answer.headers:
        yield ""
    for media_type, schema in {answer.media_type: answer.schema, **answer.also}.items():
        if schema is not None and media_type == JSON:
            yield "```"
            yield from laid_out(unnamed(schema))
            yield "```"
            yield ""


def types(declared: Sequence[Operation]) -> Iterator[str]:
    """Every type that the responses name, by name."""
    named: dict[str, Schema] = {}
    for operation in declared:
        for answer in operation.answers.values():
            for schema in (answer.schema, *answer.also.values()):
                if schema is not None:
                    collect(unnamed(schema), named)
    yield "```"
    for name, schema in sorted(named.items()):
        yield from laid_out(unnamed(schema), 0, f"{name}: ")
    yield "```"


def collect(value: Any, named: dict[str, Schema]) -> None:
    """Adds the named types in `value` to `named`."""
    if isinstance(value, Mapping):
        if isinstance(value.get("title"), str):
            named[value["title"]] = value
        for each in value.values():
            collect(each, named)
    elif isinstance(value, list):
        for each in value:
            collect(each, named)


def unnamed(schema: Schema) -> Schema:
    """The type itself, where its name would stand."""
    return {key: value for key, value in schema.items() if key != "title"}


def curl(operation: Operation) -> str:
    """A command that calls the route."""
    path = re.sub(r"{(\w+)}", lambda match: quote(PATH_PARAMETERS[match[1]][1]), operation.path)
    given = [(each.name, each.example) for each in operation.query if each.example]
    query = "&".join(f"{name}={quote(value, safe='/:')}" for name, value in given)
    words = ["curl -sS"]
    if operation.method not in ("GET", "POST") or (operation.method == "POST" and operation.body is None):
        words.append(f"-X {operation.method}")
    if any(answer.media_type == "text/event-stream" for answer in operation.answers.values()):
        words.append("-N")
    if any(answer.media_type.endswith("bundle") for answer in operation.answers.values()):
        words.append("-o fix-dns.bundle")
    target = path + (f"?{query}" if query else "")
    if operation.scope is Scope.SOCKET:
        words.append(f'--unix-socket "$GITMIRROR_SOCKET" "http://localhost{target}"')
    elif operation.scope is Scope.NOTHING:
        words.append(f'"$GITMIRROR_API{target}"')
    else:
        words.append(f'-H "Authorization: Bearer $TOKEN" "$GITMIRROR_API{target}"')
    if len(" ".join(words)) > WIDTH:
        words[-1] = words[-1].replace(' "$GIT', ' \\\n  "$GIT')
    if operation.body is not None:
        words.append(f"\\\n  -H 'Content-Type: application/json' -d '{json.dumps(operation.example or {})}'")
    return " ".join(words)


def cell(schema: Schema) -> str:
    """A type in a table, with the limits of a number."""
    text = in_line(schema).replace("|", "\\|")
    lowest, highest = schema.get("minimum"), schema.get("maximum")
    if lowest is not None and highest is not None:
        return f"{text}, {lowest} to {highest:.0f}"
    if schema.get("exclusiveMinimum") == 0:
        return f"{text} above 0"
    return text


def in_line(schema: Schema) -> str:
    """A type in one line, in the notation that the page explains."""
    if "title" in schema:
        return str(schema["title"])
    for either in ("anyOf", "oneOf"):
        if either in schema:
            return " | ".join(in_line(each) for each in schema[either])
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("pattern") == OID["pattern"]:
        return "oid"
    if schema.get("format") == "date-time":
        return "time"
    kind = schema.get("type", "any")
    if kind == "array":
        return f"[{in_line(schema['items'])}]"
    if kind == "object" and "properties" in schema:
        return "{" + ", ".join(f"{key}: {in_line(value)}" for key, value in keys_of(schema)) + "}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"{{[name]: {in_line(values)}}}" if isinstance(values, Mapping) else "object"
    return str(kind)


def keys_of(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The keys of an object with their types; those that may be missing have a question mark."""
    for name, each in schema["properties"].items():
        yield name if name in schema.get("required", ()) else f"{name}?", each


def laid_out(schema: Schema, indent: int = 0, before: str = "", after: str = "") -> Iterator[str]:
    """A type in as many lines as it needs, with the short keys of an object side by side."""
    space = " " * indent
    whole = f"{space}{before}{in_line(schema)}{after}"
    null = ""
    while "anyOf" in schema and len(schema["anyOf"]) == 2 and schema["anyOf"][1] == {"type": "null"}:
        schema, null = schema["anyOf"][0], " | null"
    kind = schema.get("type")
    if len(whole) <= WIDTH or "title" in schema or not (kind == "array" or "properties" in schema):
        yield from wrapped(whole, f"{space}  ")
    elif kind == "array":
        yield from laid_out(schema["items"], indent, f"{before}[", f"]{null}{after}")
    else:
        yield f"{space}{before}{{"
        line = ""
        for name, each in keys_of(schema):
            word = f"{name}: {in_line(each)},"
            if line and len(line) + len(word) + indent + 3 > WIDTH:
                yield f"{space}  {line}"
                line = ""
            if len(word) + indent + 2 > WIDTH:
                yield from laid_out(each, indent + 2, f"{name}: ", ",")
            else:
                line = f"{line} {word}".strip()
        if line:
            yield f"{space}  {line}"
        yield f"{space}}}{null}{after}"


def wrapped(text: str, indent: str = "") -> list[str]:
    """The text in lines, broken at spaces alone."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def main() -> int:
    """Rewrites the page, or says whether it is as it should be."""
    parser = argparse.ArgumentParser(description="Writes the generated parts of docs/api.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page would change")
    arguments = parser.parse_args()
    page = PAGE.read_text()
    made = render(page)
    if arguments.check:
        if made != page:
            print("docs/api.md is not what the code declares: run scripts/api_docs.py", file=sys.stderr)
        return int(made != page)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
