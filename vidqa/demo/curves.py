"""Training logs (`NAME.jsonl`, one object per hundred steps) -> a picture of the curves.

Needs matplotlib, which the `train` extra brings; used by the training recipes alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a resumed run writes some steps again, the last writing counts."""
    rows = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


def draw_curves(logs: Sequence[Path], picture: Path) -> None:
    """One column per log: the loss above, the shares of what was right below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(logs), figsize=(5 * len(logs), 6), squeeze=False)
    for column, log in enumerate(logs):
        rows = read_log(log)
        steps = [row["step"] for row in rows]
        above, below = axes[0][column], axes[1][column]
        above.set_title(log.stem)
        shares = sorted({key for row in rows for key in row} - {"step", "seconds"})
        for key in shares:
            values = [row.get(key) for row in rows]
            is_loss = max(value for value in values if value is not None) > 1.01 or key == "loss"
            (above if is_loss else below).plot(steps, values, label=key, linewidth=1.3)
        above.set_yscale("log")
        above.set_ylabel("loss")
        below.set_ylabel("share right")
        below.set_xlabel("steps")
        below.set_ylim(0, 1.02)
        for axis in (above, below):
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(picture, dpi=80)
    pyplot.close(figure)
