"""Shares of a whole as whole percents that add up: what people are shown of where traffic goes.

Rounded one by one, three shares of a third come to 99 %. Here the largest remainders are rounded up and the
others down, so that the percents add up to what the shares do, which is 100 where all of them are given.
"""

import math
from collections.abc import Sequence

_NOISE = 1e-9
"""Sums of floats: a share of 0.29 is 29 %, though 0.29 * 100 is a little less."""


def whole_percents(shares: Sequence[float | None]) -> list[int | None]:
    """Round shares (fractions of one whole, not negative) to whole percents by largest remainder.

    Ties go to the first. None, for a share that is not known, stays None.
    """
    exact = {index: share * 100 for index, share in enumerate(shares) if share is not None}
    whole = {index: math.floor(value + _NOISE) for index, value in exact.items()}
    left = math.floor(sum(exact.values()) + 0.5) - sum(whole.values())
    for index in sorted(exact, key=lambda index: (whole[index] - exact[index], index))[:left]:
        whole[index] += 1
    return [whole.get(index) for index in range(len(shares))]
