"""Mends for packages that do not fit each other, each with its reason."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

_OPEN_CLIP_OPTIONS = frozenset({"timm", "transformers"})
# What is missing while open_clip is imported is missing to every thread.
_importing = threading.Lock()
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


def import_open_clip(needs: frozenset[str] = _OPEN_CLIP_OPTIONS) -> Any:
    """open_clip, importing of its optional packages only what is needed, and what is there already.

    open_clip does without timm and transformers where they are missing, and imports both whole
    where they are not, with torch's compiler behind them: 2.8 of 4.5 CPU seconds of each start, for
    models that use neither. An open_clip that was imported without what is needed now is
    imported anew; models made by the former one go on working.
    """
    with _importing:
        declare_torchvision_operators()
        if _lacks(needs):
            for name in [name for name in sys.modules if name.split(".")[0] == "open_clip"]:
                del sys.modules[name]
        if "open_clip" not in sys.modules:
            # transformers asks once, when it is imported, whether there is a timm, and remembers.
            spared = frozenset() if "transformers" in needs else _OPEN_CLIP_OPTIONS - needs
            absent = spared - sys.modules.keys()
            with _without_compiler(), _missing(absent):
                importlib.import_module("open_clip")
        return sys.modules["open_clip"]


def _lacks(needs: frozenset[str]) -> bool:
    """Whether there is an open_clip that was told that one of `needs` is missing."""
    users = {"timm": "open_clip.timm_model", "transformers": "open_clip.hf_model"}
    return any(
        users[need] in sys.modules and getattr(sys.modules[users[need]], need, None) is None
        for need in needs
    )


@contextmanager
def _missing(names: frozenset[str]) -> Iterator[None]:
    """Makes imports of these packages fail; None is Python's own mark for that."""
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Imports torchvision without torch's compiler, of which it wants one function, for later."""
    names = ("torch._dynamo", "torch._dynamo.utils")
    if "torchvision" in sys.modules or names[0] in sys.modules:
        yield
        return
    package, utils = map(ModuleType, names)
    package.__path__ = []
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules.update(zip(names, (package, utils), strict=True))
    try:
        with suppress(Exception):  # whatever it is: the caller imports it again, and whole
            importlib.import_module("torchvision")
    finally:
        for name in names:
            del sys.modules[name]
    yield


def _is_compile_supported(device: str) -> bool:
    utils = importlib.import_module("torch._dynamo.utils")
    return bool(utils.is_compile_supported(device))


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
