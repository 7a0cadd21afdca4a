"""Policies from files: YAML with one or more documents, of which the InferencePolicies are taken."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from meritorder_api.names import KIND
from meritorder_api.resource import InferencePolicy, PolicyError
from meritorder_cli.complaint import WrongUse


def read_policy(paths: Iterable[Path]) -> InferencePolicy:
    """The one InferencePolicy of these files."""
    found: list[tuple[Path, InferencePolicy]] = []
    kinds: list[str] = []
    names = [str(path) for path in paths]
    for path in map(Path, names):
        for manifest in _documents(path):
            kind = str(manifest.get("kind"))
            if kind != KIND:
                kinds.append(kind)
                continue
            try:
                found.append((path, InferencePolicy.parse(manifest, strict=True)))
            except PolicyError as error:
                raise WrongUse(f"{path}: {error}") from error
    if not found:
        seen = f" (only {', '.join(sorted(set(kinds)))})" if kinds else ""
        raise WrongUse(f"{', '.join(names)}: no {KIND} found{seen}")
    if len(found) > 1:
        listed = ", ".join(f"`{policy.metadata.name}`" for _, policy in found)
        raise WrongUse(f"{len(found)} policies given ({listed}); `run` serves one: start it once per policy")
    return found[0][1]


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise WrongUse(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise WrongUse(f"{path}: cannot be read: not UTF-8 text") from error
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise WrongUse(
            f"{path}: not valid YAML{where}: {getattr(error, 'problem', None) or 'cannot be parsed'}"
        ) from error
    for document in documents:
        if not isinstance(document, dict):
            raise WrongUse(
                f"{path}: each document must be a mapping such as an {KIND}, not a {_kind(document)}"
            )
        if document.get("kind") == "List":
            yield from (item for item in document.get("items") or [] if isinstance(item, dict))
        else:
            yield document


def _kind(value: object) -> str:
    return {str: "text", list: "list", int: "number", float: "number", bool: "truth value"}.get(
        type(value), "value"
    )
