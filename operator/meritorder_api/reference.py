"""The API reference as Markdown, made from the CustomResourceDefinition: what it says and nothing else."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

_TOP: Final = """\
# InferencePolicy

<!-- Generated from the models in operator/meritorder_api by `make crds`. Do not edit. -->

{description}

API version `{group}/{version}`, kind `{kind}`, namespaced; plural `{plural}`, short name `{short}`.
Ready to try: [examples/policy.yaml](../../examples/policy.yaml) (in a cluster) and
[examples/two-servers.yaml](../../examples/two-servers.yaml) (without one).

Money is a decimal string in US dollars; times are whole seconds or milliseconds, as the field's name says.
What is not marked *required* may be left out. The same text is in `kubectl explain {short}.spec`.
{rules}
"""

_ROOTS: Final = {
    "spec": "What you write.",
    "status": "What Meritorder writes; nobody else should.",
}


def reference(crd: Mapping[str, Any]) -> str:
    """Write the reference of a CustomResourceDefinition; equal CRD, equal bytes."""
    spec = crd["spec"]
    (version,) = spec["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    parts = [
        _TOP.format(
            rules="\n".join(_rules(schema)),
            description=schema["description"],
            group=spec["group"],
            version=version["name"],
            kind=spec["names"]["kind"],
            plural=spec["names"]["plural"],
            short=spec["names"]["shortNames"][0],
        )
    ]
    for root, meaning in _ROOTS.items():
        parts.append(f"## {root}\n\n{meaning}\n")
        parts.extend(_sections(root, schema["properties"][root], defaults=root == "spec"))
    parts.append(_columns(version["additionalPrinterColumns"]))
    return "\n".join(parts)


def _sections(path: str, node: Mapping[str, Any], *, defaults: bool) -> Iterator[str]:
    """The tables of an object and of the objects in it, outer ones first."""
    required = node.get("required", ())
    rows = [
        _row(path, name, child, required=name in required, defaults=defaults)
        for name, child in node["properties"].items()
    ]
    head = ["Field", "Type", "Default", "Description"] if defaults else ["Field", "Type", "Description"]
    lines = [_line(head), _line(["---"] * len(head)), *map(_line, rows)]
    lines += _rules(node)
    yield "\n".join(lines) + "\n"
    for name, child in node["properties"].items():
        inner, suffix = (child["items"], "[]") if child["type"] == "array" else (child, "")
        if "properties" in inner:
            below = f"{path}.{name}{suffix}"
            yield f"### {below}\n\n{child['description']}\n"
            yield from _sections(below, inner, defaults=defaults)


def _rules(node: Mapping[str, Any]) -> list[str]:
    rules = _messages(node)
    return ["", "Rules:", "", *(f"- {rule}" for rule in rules)] if rules else []


def _messages(node: Mapping[str, Any]) -> list[str]:
    return [rule["message"] for rule in node.get("x-kubernetes-validations", ())]


def _row(path: str, name: str, node: Mapping[str, Any], *, required: bool, defaults: bool) -> list[str]:
    field = f"`{name}`" + ("<br>*required*" if required and defaults else "")
    default = _default(node)
    description = node["description"]
    value = node["items"] if node["type"] == "array" else node
    if "properties" not in value and "additionalProperties" not in value:
        subject = "It" if value is node else "Each"
        description += "".join(f" {subject} {message}." for message in _messages(value))
    cells = [field, _type(f"{path}.{name}", node), default, description]
    return cells if defaults else [cells[0], cells[1], cells[3]]


def _default(node: Mapping[str, Any]) -> str:
    if "default" not in node or "properties" in node:
        return ""
    value = node["default"]
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(path: str, node: Mapping[str, Any]) -> str:
    kind: str = node["type"]
    if "enum" in node:
        return "one of " + ", ".join(f"`{value}`" for value in node["enum"])
    if kind == "array":
        items = node["items"]
        of = _link(f"{path}[]", "objects") if "properties" in items else _type(path, items)
        return f"list of {of}" + _span(node, "minItems", "maxItems", ", {} entries")
    if kind == "object":
        if "properties" in node:
            return _link(path, "object")
        return f"map of {node['additionalProperties']['type']}" + _span(
            node, "minProperties", "maxProperties", ", {} entries"
        )
    if kind == "integer":
        return "integer" + _span(node, "minimum", "maximum", ", {}")
    if node.get("format") == "date-time":
        return "time (RFC 3339)"
    return kind + _span(node, "minLength", "maxLength", ", {} characters")


def _span(node: Mapping[str, Any], low: str, high: str, text: str) -> str:
    least, most = node.get(low), node.get(high)
    if most is None:
        return ""
    return text.format(f"at most {most:,}" if least is None else f"{least:,} to {most:,}")


def _link(path: str, text: str) -> str:
    anchor = "".join(letter for letter in path.lower() if letter.isalnum())
    return f"[{text}](#{anchor})"


def _columns(columns: list[Mapping[str, Any]]) -> str:
    rows = [
        [f"`{c['name']}`", "`-o wide` only" if c.get("priority") else "always", c["description"]]
        for c in columns
    ]
    lines = [_line(["Column", "Shown", "Meaning"]), _line(["---"] * 3), *map(_line, rows)]
    return "## Columns of `kubectl get`\n\n" + "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
