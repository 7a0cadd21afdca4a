"""Size classes: how much a request asks for, known before its pool is chosen.

The class is the power of two that holds the most tokens of the answer, as the body says; else what the body's
length makes of it. The filter of `render.streams` finds it, writes it into a header of our own and lets Envoy
choose the route anew. There is a route per class, so that the class is known wherever something is counted,
per try too, and the choice of the pool reads the header (`render.lua`).

That header is taken off what clients send before anything sees it, and never goes to a pool.

A body is waited for only if its length is known and small; a larger one passes as it comes. A request of
unknown length has no class: its pool's own limit holds.
"""

from meritorder_api.table import TablePool

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Most tokens of each class; the last one holds everything larger too."""
ASKED_BY = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""Keys of the body that say how long the answer may be; where there are several, servers go by the first."""
ENDING = "_tokens"
"""What all of these end with, and few words of a prompt do: by this they are looked for."""
LONGEST = max(len(key) for key in ASKED_BY)
READ_BYTES = 256 * 1024
"""A larger body is not waited for."""
BYTES_PER_TOKEN = 4
"""About what a token takes, by which a body's length stands for tokens."""
DIGITS = 7
"""A number with more of them is nobody's wish."""


def held_to(pool: TablePool, size: int) -> int | None:
    """The limit of a class: of the smallest listed one that holds it, else the pool's own."""
    for listed in sorted(pool.class_limits, key=lambda each: each.max_tokens):
        if listed.max_tokens >= size:
            return listed.limit
    return pool.limit
