"""JSON patches (RFC 6902) as the API server applies them, so far as ours go: `add`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any


def patched(document: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The document after these steps; the one given stays."""
    result = copy.deepcopy(dict(document))
    for step in steps:
        assert step["op"] == "add", step
        *way, last = (part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:])
        place: Any = result
        for part in way:
            place = place[int(part)] if isinstance(place, list) else place[part]
        value = copy.deepcopy(step["value"])
        if isinstance(place, list):
            place.insert(len(place) if last == "-" else int(last), value)
        else:
            place[last] = value
    return result
