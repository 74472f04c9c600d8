"""Records that cannot be invalid."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from vidqa.types import Filters


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": " "}, "text is empty; give a word"),
        ({"min_seconds": 9, "max_seconds": 8}, "min_seconds 9 is above max_seconds 8"),
        (
            {"after": date(2026, 1, 2), "before": date(2026, 1, 2)},
            r"no day is in \[2026-01-02, 2026-01-02\)",
        ),
    ],
)
def test_filters_that_nothing_can_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Filters(**values)
