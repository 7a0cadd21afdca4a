"""Events of Kubernetes about one object, as all parts write them. Pure."""

from collections.abc import Mapping
from typing import Any, Final

LONGEST_NOTE: Final = 1000
LONGEST_INSTANCE: Final = 128


def event(
    about: Mapping[str, str],
    *,
    reason: str,
    message: str,
    warning: bool,
    name: str,
    component: str,
    instance: str,
    now: str,
) -> dict[str, Any]:
    """An Event object about one object; `name` must be new in its namespace, `now` is as the API writes
    times.
    """
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": about["namespace"]},
        "involvedObject": dict(about),
        "type": "Warning" if warning else "Normal",
        "reason": reason,
        "message": message[:LONGEST_NOTE],
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": instance[:LONGEST_INSTANCE],
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
