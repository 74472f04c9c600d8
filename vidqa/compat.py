"""Mends for packages that do not fit each other, each with its reason."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

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


def mend_patch_merger() -> None:
    """Lets vLLM load a Qwen2-VL that merges other than 2 x 2 patches into a visual token.

    vLLM 0.32 makes Qwen2-VL's patch merger for 2 x 2, whatever `spatial_merge_size` says; all else
    in it follows the setting, and so does transformers. For 2 x 2 this changes nothing.
    """
    from vllm.model_executor.models import qwen2_vl

    merger, make = qwen2_vl.Qwen2VisionPatchMerger, qwen2_vl.Qwen2VisionTransformer.__init__

    @functools.wraps(make)
    def make_with_merge_size(self: Any, vision_config: Any, *rest: Any, **named: Any) -> None:
        size = vision_config.spatial_merge_size
        qwen2_vl.Qwen2VisionPatchMerger = functools.partial(merger, spatial_merge_size=size)
        try:
            make(self, vision_config, *rest, **named)
        finally:
            qwen2_vl.Qwen2VisionPatchMerger = merger

    qwen2_vl.Qwen2VisionTransformer.__init__ = make_with_merge_size
