"""What a test needs of the machine and does not find: a skip on a laptop, a failure in CI."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def cannot_run(reason: object) -> NoReturn:
    """End the test or fixture for want of something; the reason is one sentence that says what to do."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"CI must have it: {reason}", pytrace=False)
    pytest.skip(str(reason))
