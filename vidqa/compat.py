"""Mends for packages that do not fit each other, each with its reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_torchvision_operators() -> None:
    """Lets `import torchvision` succeed where its C++ part cannot be loaded.

    The package index carries torchvision built for CUDA; beside a CPU-only torch its extension
    does not load, and the import stops at `operator torchvision::nms does not exist`. Declaring
    the two operators is enough: nothing in vidqa, open_clip or Qwen2-VL's processors calls them.
    Where the extension loads, this does nothing. Call it before the first import of torchvision.
    """
    import torch

    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or hasattr(torch.ops.torchvision, _OPERATORS[0]):
        return
    for extension in Path(found.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(extension))  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return
    for name in _OPERATORS:
        torch.library.define(f"torchvision::{name}", _SCHEMA)
