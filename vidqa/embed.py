"""The embedder: frames and queries become vectors that can be compared, by an open_clip model.

    embedder = load_embedder("ViT-B-32-SigLIP2-256")
    embedder.embed_images(images)      uint8 (N, H, W, 3) RGB at `spec`'s size -> float32 (N, D)
    embedder.embed_texts(texts)        -> float32 (N, D); both L2-normalised

Every model is loaded from a folder with `open_clip_config.json` and `open_clip_model.safetensors`:
one that the user names, or the snapshot of a hub's repository. Pickled weights are not read.
Frames arrive at the model's size (vidqa.pictures scales them), so nothing is resized here.

On a CPU the linear layers of the image tower run in int8: 1.9 times the frames of float32 on AVX2,
at a cosine of 0.999 to its vectors. The text tower stays in float32; it sees one query at a time.
"""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import json
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vidqa.compat import import_open_clip
from vidqa.errors import MissingExtra, ModelError
from vidqa.types import EmbedderSpec

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
HUB_FILES = (CONFIG, WEIGHTS, *_TOKENIZER_FILES)

_LOCAL, _HUB = "local-dir:", "hf-hub:"
# A hub that does not answer within this is treated as out of reach.
_HUB_TIMEOUT_SECONDS = 5.0
# On a processor 8 pictures are embedded at the speed of 32, and their activations are a quarter of
# the memory, which costs time as well when it is first touched.
_BATCH = {"cpu": 8, "cuda": 256, "mps": 64}
# Quantising smaller layers loses accuracy and gains no time.
_INT8_MIN_WEIGHTS = 512 * 512
_INT8_MIN_COSINE = 0.99
# `_without_copies` changes a function of open_clip for a while: one model at a time.
_loading = threading.Lock()
# Blocks of the weights that go into their digest, spread evenly over the file.
_DIGEST_BLOCKS, _DIGEST_BLOCK_BYTES = 256, 4096


class Embedder(Protocol):
    """What turns frames and queries into vectors; two of equal `spec` give the same vectors."""

    spec: EmbedderSpec

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (N, H, W, 3) RGB at the size in `spec` -> float32 (N, D), L2-normalised."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """N texts -> float32 (N, D), L2-normalised."""
        ...


def load_embedder(model: str, device: str = "auto", hub: str = "huggingface") -> Embedder:
    """Loads an open_clip model.

    `model` is a folder, the name of an open_clip model that comes with one set of weights,
    `NAME:PRETRAINED` for others, or `hf-hub:OWNER/NAME`. `device` is auto, cpu, cuda or mps;
    `hub` is huggingface, modelscope or none. The weights are mapped into memory: while they are
    in use the file may be replaced by another, but not be written into. Raises ModelError.
    """
    folder = find_folder(model, hub)
    return OpenClipEmbedder(model_name(model), folder, _resolve_device(device))


def model_name(model: str) -> str:
    """The name under which a library remembers its embedder; of a folder, its whole path."""
    folder = _as_folder(model)
    return str(folder.resolve()) if folder is not None else model


# ---------------------------------------------------------------- finding the weights


def find_folder(model: str, hub: str = "huggingface") -> Path:
    """The folder with the files of a model, downloaded when a hub can be asked."""
    folder = _as_folder(model)
    if folder is None:
        folder = _snapshot(model, repository(model), hub)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(
                f"embedder {model}: {folder} has no {name}; an open_clip folder has {CONFIG} and "
                f"{WEIGHTS}"
            )
    return folder


def _as_folder(model: str) -> Path | None:
    folder = Path(model.removeprefix(_LOCAL)).expanduser()
    if model.startswith(_LOCAL) or folder.is_dir():
        return folder
    if not model.startswith(_HUB) and ("/" in model or model.startswith((".", "~"))):
        raise ModelError(f"embedder {model}: no such folder; for a model of a hub: {_HUB}{model}")
    return None


def repository(model: str) -> str:
    """The hub's repository `OWNER/NAME` with the weights of an open_clip model."""
    if model.startswith(_HUB):
        return model.removeprefix(_HUB)
    open_clip = import_open_clip()
    name, _, tag = model.partition(":")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=1, cutoff=0.3)
        raise ModelError(
            f"embedder {model}: open_clip knows no weights of that name; the nearest is "
            f"{near[0] if near else 'none'}; or name a folder"
        )
    if tag not in tags and (tag or len(tags) > 1):
        raise ModelError(
            f"embedder {model}: name its weights as {name}:PRETRAINED; known are {', '.join(tags)}"
        )
    owner_and_name, _, file = (
        open_clip.get_pretrained_cfg(name, tag or tags[0]).get("hf_hub", "").rpartition("/")
    )
    if not owner_and_name or file:
        raise ModelError(
            f"embedder {model}: its weights are not published as {WEIGHTS}; convert them, and name "
            "the folder"
        )
    return str(owner_and_name)


def _snapshot(model: str, repo: str, hub: str) -> Path:
    """The local copy of a hub's repository; the cache first, then the hub."""
    cached = _from_huggingface(repo, offline=True)
    if isinstance(cached, Path) and hub != "modelscope":
        return cached
    if hub == "modelscope":
        return _from_modelscope(model, repo)
    reason = "the hub is not asked (hub: none)"
    if hub != "none":
        found = _from_huggingface(repo, offline=False)
        if isinstance(found, Path):
            return found
        reason = found
    from huggingface_hub import constants

    raise ModelError(
        f"no weights for embedder {model}: {repo} is not in {constants.HF_HUB_CACHE}, and "
        f"{reason}; ways out: --embedder FOLDER, VIDQA_HUB=modelscope, or HF_ENDPOINT=URL of a "
        "mirror"
    )


def _from_huggingface(repo: str, *, offline: bool) -> Path | str:
    """The snapshot's folder, or why there is none."""
    import httpx
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(
            snapshot_download(
                repo,
                allow_patterns=list(HUB_FILES),
                local_files_only=offline,
                etag_timeout=_HUB_TIMEOUT_SECONDS,
            )
        )
    except (OSError, ValueError, TypeError, HfHubHTTPError, httpx.HTTPError) as error:
        # Value and type: a name that cannot be one, a sign-in page in place of the hub.
        reason = str(error).strip().split("\n", 1)[0]
        return f"{constants.ENDPOINT} did not give it ({reason})"
    # A download that broke off leaves a folder without the weights.
    return folder if (folder / WEIGHTS).is_file() or not offline else "it is not whole"


def _from_modelscope(model: str, repo: str) -> Path:
    try:
        from modelscope import snapshot_download  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise MissingExtra(
            "VIDQA_HUB=modelscope needs the package modelscope: uv pip install modelscope"
        ) from error
    try:
        return Path(snapshot_download(repo, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # its errors share no base class
        reason = str(error).strip().split("\n", 1)[0]
        raise ModelError(
            f"no weights for embedder {model}: ModelScope did not give {repo} ({reason}); ways "
            "out: --embedder FOLDER, or VIDQA_HUB=huggingface"
        ) from error


# ---------------------------------------------------------------- the model


class OpenClipEmbedder:
    """An open_clip model that is loaded. Safe to call from several threads."""

    def __init__(self, name: str, folder: Path, device: str) -> None:
        config = _read_config(folder)
        network = _load_network(folder, config)
        cfg = network.visual.preprocess_cfg
        if cfg["resize_mode"] not in ("shortest", "squash"):
            raise ModelError(
                f"embedder {name}: resize_mode {cfg['resize_mode']!r} is not supported; "
                "shortest and squash are"
            )
        height, width = _pair(cfg["size"])
        self.spec = EmbedderSpec(
            model=name,
            weights=_digest(folder, config),
            dimension=int(config["model_cfg"]["embed_dim"]),
            image_height=height,
            image_width=width,
            resize_mode=cfg["resize_mode"],
        )
        self._device = device
        self._network = network.to(device)
        self._tokenize = _tokenizer(folder, config)
        self._prepare = threading.Lock()
        self._text_turn = threading.Lock()
        self._visual: nn.Module | None = None
        self._scale = _channels(1 / (255 * np.array(cfg["std"])), device)
        self._shift = _channels(-np.array(cfg["mean"]) / np.array(cfg["std"]), device)

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        shape = (self.spec.image_height, self.spec.image_width, 3)
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise ValueError(
                f"images are {images.dtype} {images.shape}; uint8 (N, {', '.join(map(str, shape))})"
                " is needed"
            )
        visual, size = self._image_tower(), _BATCH[self._device]
        vectors = np.empty((len(images), self.spec.dimension), np.float32)
        with torch.inference_mode(), _precision(self._device):
            for start in range(0, len(images), size):
                batch = torch.from_numpy(np.ascontiguousarray(images[start : start + size]))
                pixels = batch.to(self._device).permute(0, 3, 1, 2).float()
                features = visual(pixels * self._scale + self._shift)
                vectors[start : start + size] = _normalised(features)
        return vectors

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch

        if not texts:
            return np.empty((0, self.spec.dimension), np.float32)
        tokens = self._tokenize(list(texts)).to(self._device)
        tower = self._network.text
        with (
            self._text_turn,
            torch.inference_mode(),
            _precision(self._device),
            _trimmed(tokens, tower) as needed,
        ):
            return _normalised(tower(needed))

    def _image_tower(self) -> nn.Module:
        """The image tower as it runs here; made for the first frames, which a search never has."""
        with self._prepare:
            if self._visual is None:
                visual = self._network.visual
                if self._device == "cpu":
                    visual = quantised(visual, self.spec.image_height, self.spec.image_width)
                    self._network.visual = visual  # lets go of the float32 weights
                self._visual = visual
            return self._visual


def _normalised(features: torch.Tensor) -> NDArray[np.float32]:
    from torch.nn import functional

    vectors = functional.normalize(features.float(), dim=-1).cpu().numpy()
    return np.asarray(vectors, np.float32)


def _channels(values: NDArray[np.float64], device: str) -> torch.Tensor:
    import torch

    return torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _precision(device: str) -> AbstractContextManager[Any]:
    """Half precision where it is the fast one; float32 accumulates either way."""
    import torch

    return torch.autocast("cuda", dtype=torch.float16) if device == "cuda" else nullcontext()


def _resolve_device(device: str) -> str:
    import torch

    if device != "auto":
        if device == "cuda" and not torch.cuda.is_available():
            raise ModelError("device cuda: torch sees no CUDA card here; use --device cpu or auto")
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@contextmanager
def _trimmed(tokens: torch.Tensor, text_tower: Any) -> Iterator[torch.Tensor]:
    """The tokens without padding that cannot matter, and the tower set to their number.

    In a causal tower that is read at its end-of-text token (CLIP, PE-Core) nothing looks at what
    comes after it: a query of 6 tokens takes a quarter of the time of 77, for the same vector.
    SigLIP's tower sees its padding, and keeps it.
    """
    mask = getattr(text_tower, "attn_mask", None)
    if mask is None or getattr(text_tower, "pool_type", "") != "argmax":
        yield tokens
        return
    length = int(tokens.argmax(dim=-1).max()) + 1
    text_tower.attn_mask = mask[:length, :length]
    try:
        yield tokens[:, :length]
    finally:
        text_tower.attn_mask = mask


# ---------------------------------------------------------------- loading


def _needs(config: dict[str, Any]) -> frozenset[str]:
    """Which of open_clip's optional packages the towers of a model are made of."""
    model = config["model_cfg"]
    uses = {
        "timm": "timm_model_name" in model.get("vision_cfg", {}),
        "transformers": "hf_model_name" in model.get("text_cfg", {}),
    }
    return frozenset(name for name, used in uses.items() if used)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
        int(config["model_cfg"]["embed_dim"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / CONFIG} is not the configuration of an open_clip model: {error!r}"
        ) from error
    return config


def _load_network(folder: Path, config: dict[str, Any]) -> Any:
    try:
        open_clip = import_open_clip(_needs(config))
        with _loading, _without_initialisation(), _without_copies(open_clip.factory):
            # The custom class keeps the text tower in one module, which `_trimmed` needs.
            network = open_clip.create_model(f"{_LOCAL}{folder}", force_custom_text=True)
    except Exception as error:  # open_clip, timm, torch and safetensors each have their own
        reason = str(error).strip().split("\n", 1)[0]
        raise ModelError(
            f"{folder} cannot be loaded as an open_clip model: {reason}; fetch its files again"
        ) from error
    # Weights that are kept in half precision are computed with in whole.
    return network.float().eval().requires_grad_(False)


def _tokenizer(folder: Path, config: dict[str, Any]) -> Any:
    try:
        return import_open_clip(_needs(config)).get_tokenizer(f"{_LOCAL}{folder}")
    except Exception as error:  # transformers and sentencepiece each have their own
        reason = str(error).strip().split("\n", 1)[0]
        raise ModelError(
            f"{folder} has no tokenizer that can be read: {reason}; fetch its files again"
        ) from error


@contextmanager
def _without_initialisation() -> Iterator[None]:
    """Leaves parameters as they were allocated: loading overwrites every one of them (strictly).

    Drawing 375 M random numbers for SigLIP2 B/32 would take four seconds of every start.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    fills = {
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        torch.Tensor.erfinv_,
        torch.nn.init.normal_,
        torch.nn.init.uniform_,
        torch.nn.init.kaiming_uniform_,
    }

    class NoFilling(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in fills:
                return (kwargs or {}).get("tensor", args[0] if args else None)
            return func(*args, **(kwargs or {}))

    with NoFilling():
        yield


@contextmanager
def _without_copies(factory: Any) -> Iterator[None]:
    """Makes the tensors of the weights' file, mapped into memory, the parameters themselves.

    What is not used is then never read: an ingest has no use for the text tower, nor a search for
    the image tower.
    """
    load = factory.load_checkpoint

    def load_assigning(network: Any, *rest: Any, **named: Any) -> Any:
        network.load_state_dict = functools.partial(network.load_state_dict, assign=True)
        try:
            return load(network, *rest, **named)
        finally:
            del network.load_state_dict

    factory.load_checkpoint = load_assigning
    try:
        yield
    finally:
        factory.load_checkpoint = load


def _digest(folder: Path, config: dict[str, Any]) -> str:
    """Tells weights and their preprocessing apart: hex, of the size, header and sampled blocks.

    Reading all of 1.5 GB would take a second or two of every start; no training leaves 256 blocks
    all over the file as they were.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    path = folder / WEIGHTS
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for block in range(_DIGEST_BLOCKS):
            file.seek(max(0, size - _DIGEST_BLOCK_BYTES) * block // (_DIGEST_BLOCKS - 1))
            digest.update(file.read(_DIGEST_BLOCK_BYTES))
    return digest.hexdigest()[:32]


# ---------------------------------------------------------------- int8


def quantised(tower: nn.Module, image_height: int, image_width: int) -> nn.Module:
    """An image tower with int8 linear layers, or the tower itself where that is no gain or harm.

    Weights are rounded per output channel, activations per call by their range, to 7 bits: AVX2
    without VNNI saturates at 8. Both share the parameters that are not rounded. Some towers reach
    into the weights of their layers, which packed layers have not: one picture through both tells.
    """
    import torch

    fast = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if not fast or torch.backends.quantized.engine not in ("x86", "fbgemm", "onednn"):
        return tower
    kept = {id(tensor): tensor for tensor in (*tower.parameters(), *tower.buffers())}
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, image_height, image_width, generator=generator) * 2 - 1
    try:
        packed = _with_int8(copy.deepcopy(tower, kept))
        with torch.inference_mode():
            cosine = torch.cosine_similarity(tower(picture), packed(picture)).item()
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        log.info("the image tower stays in float32: %s", error)
        return tower
    if cosine < _INT8_MIN_COSINE:
        log.info("the image tower stays in float32: int8 would turn vectors to %.3f", cosine)
        return tower
    return packed


def _with_int8(module: nn.Module) -> nn.Module:
    from torch import nn

    for name, child in module.named_children():
        if isinstance(child, nn.MultiheadAttention):
            # Only in these blocks are query, key and value one and the same.
            alike = type(module).__name__ == "ResidualAttentionBlock"
            weight = child.in_proj_weight
            if alike and weight is not None and weight.numel() >= _INT8_MIN_WEIGHTS:
                setattr(module, name, _int8_attention(child))
        elif isinstance(child, nn.Linear):
            setattr(module, name, _int8_linear(child.weight, child.bias, child))
        else:
            _with_int8(child)
    return module


def _int8_attention(attention: nn.MultiheadAttention) -> nn.Module:
    """torch's self-attention, whose projections are plain tensors, as two linear layers."""
    from torch import nn
    from torch.nn.functional import scaled_dot_product_attention

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inward, outward = attention, attention.out_proj
            self.inward = _int8_linear(inward.in_proj_weight, inward.in_proj_bias)
            self.outward = _int8_linear(outward.weight, outward.bias)
            self.heads = attention.num_heads

        def forward(
            self, x: torch.Tensor, *_: torch.Tensor, attn_mask: torch.Tensor | None, **__: bool
        ) -> tuple[torch.Tensor, None]:
            rows, length, width = x.shape
            split = self.inward(x).view(rows, length, 3, self.heads, width // self.heads)
            query, key, value = split.permute(2, 0, 3, 1, 4)
            mixed = scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
            return self.outward(mixed.transpose(1, 2).reshape(rows, length, width)), None

    return SelfAttention()


def _int8_linear(
    weight: torch.Tensor | None, bias: torch.Tensor | None, otherwise: nn.Module | None = None
) -> nn.Module:
    """A linear layer on packed int8 weights; `otherwise` for one too small to gain by it."""
    import torch
    from torch import nn

    assert weight is not None
    if weight.numel() < _INT8_MIN_WEIGHTS and otherwise is not None:
        return otherwise
    weight = weight.detach()
    scales = weight.abs().amax(dim=1).clamp_min(1e-8) / 127
    # torch's own rounding, quantize_per_channel, takes four times as long.
    rounded = (weight / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():
        # torch announces an end to quantised tensors; where it comes, `quantised` falls back.
        warnings.simplefilter("ignore", UserWarning)
        channels = torch._make_per_channel_quantized_tensor(rounded, scales.double(), zeros, 0)
    packed = torch.ops.quantized.linear_prepack(channels, None if bias is None else bias.detach())

    class Int8Linear(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = torch.ops.quantized.linear_dynamic(
                x.contiguous(), packed, reduce_range=True
            )
            return out

    return Int8Linear()
