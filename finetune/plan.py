"""What a training will be: which rows it uses and which not, and what it will take.

    plan = make_plan(rows, encoder, Budget(max_tokens=4096))
    RowDataset([one.row for one in plan.used], encoder, [one.look for one in plan.used])
    memory = estimate(shape_of(model.config), trainable, every, plan, batch=1, ...)
    as_text(plan, memory), as_dict(plan, memory)

A row that is too long shows fewer frames, then smaller ones, down to what the budget allows; else
it is dropped and named. No row is ever cut, and one that cannot be read costs itself only. Reading
all media here puts them on the shelf, so the training decodes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from finetune.dataset import Encoder, Measure
from finetune.fetch import fetch
from finetune.layout import Look, Shown
from finetune.media import frame_counts, show_row
from finetune.rows import Media, Origin, Row
from vidqa.errors import UsageError, VideoError
from vidqa.pictures import jpeg_size
from vidqa.select import fitted_size

# nf4: 4 bits, 8 for the scale of 64 weights, 32 for the scale of 256 of these (QLoRA, section 3).
_BYTES_IN_4_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# Each try with smaller frames has this part of the pixels of the one before.
_SHRINK = 0.85


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a row may be, and how far its media may be reduced for that.

    `min_frames` is of all videos of a row together, `min_pixels` of a frame; None is a quarter of
    what the look has.
    """

    max_tokens: int
    min_frames: int = 4
    min_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens {self.max_tokens}: at least 1 is required")

    def least_pixels(self, look: Look) -> int:
        least = look.max_pixels // 4 if self.min_pixels is None else self.min_pixels
        return min(look.max_pixels, max(28 * 28, least))


@dataclass(frozen=True, slots=True)
class Planned:
    """A row that is used, the look by which it is encoded, and how long it is then.

    `frames` are those of its videos and pictures, `pixels` of one frame at most, as it is sent.
    """

    row: Row
    look: Look
    measure: Measure
    frames: int
    pixels: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is not used, and why: one line."""

    origin: Origin
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows in the order in which they were given."""

    look: Look
    budget: Budget
    used: tuple[Planned, ...]
    dropped: tuple[Dropped, ...]

    @property
    def reduced(self) -> tuple[Planned, ...]:
        return tuple(one for one in self.used if one.look != self.look)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row that is used."""
        return [one.measure.tokens for one in self.used]


def make_plan(
    rows: Sequence[Row],
    encoder: Encoder,
    budget: Budget,
    on_row: Callable[[int, int], None] | None = None,
    *,
    workers: int = 0,
    on_media: Callable[[int, int], None] | None = None,
) -> Plan:
    """Looks at every row. `on_row` is told (rows done, rows in all) as it goes on.

    With `workers` and a shelf, that many processes read all media first, so that a file that
    crashes its decoder costs its rows only; `on_media` is told (media done, media in all).
    """
    crashed: dict[Media, str] = {}
    if workers and encoder.shelf is not None:
        crashed = fetch(rows, encoder.look, encoder.shelf, workers, on_media)
    used: list[Planned] = []
    dropped: list[Dropped] = []
    for n, row in enumerate(rows, start=1):
        reasons = [crashed[media] for media in row.media if media in crashed]
        if reasons:
            outcome: Planned | Dropped = Dropped(row.origin, reasons[0])
        else:
            outcome = plan_row(row, encoder, budget)
        if isinstance(outcome, Planned):
            used.append(outcome)
        else:
            dropped.append(outcome)
        if on_row is not None:
            on_row(n, len(rows))
    return Plan(encoder.look, budget, tuple(used), tuple(dropped))


def plan_row(row: Row, encoder: Encoder, budget: Budget) -> Planned | Dropped:
    """One row within the budget, or why it cannot be."""
    try:
        first = _at(row, encoder, encoder.look)
        if first.measure.tokens <= budget.max_tokens:
            return first
        words = first.measure.tokens - first.measure.media_tokens
        if words >= budget.max_tokens or not first.measure.media_tokens:
            return Dropped(
                row.origin,
                f"its text alone is {words:,} tokens; max_row_tokens is {budget.max_tokens:,}: "
                "shorten it, or allow more",
            )
        shown = show_row(row, encoder.look, encoder.shelf)
        for look in _smaller(encoder.look, budget):
            media = _media_tokens(row, shown, look, encoder)
            if media is None or words + media > budget.max_tokens:
                continue
            planned = _at(row, encoder, look)
            if planned.measure.tokens <= budget.max_tokens:
                return planned
        return Dropped(row.origin, _too_long(first, budget, encoder.look))
    except (VideoError, UsageError) as error:
        return Dropped(row.origin, str(error).removeprefix(f"{row.origin}: "))


def _at(row: Row, encoder: Encoder, look: Look) -> Planned:
    shown = show_row(row, look, encoder.shelf)
    measure = encoder.measure(encoder.segments(row, shown, look))
    sizes = [jpeg_size(one.pictures[0].jpeg) for one in shown]
    return Planned(
        row,
        look,
        measure,
        frames=sum(len(one.pictures) for one in shown),
        pixels=max((width * height for width, height in sizes), default=0),
    )


def _smaller(look: Look, budget: Budget) -> Iterator[Look]:
    """Looks that show less and less: pairs of frames go first, then pixels."""
    frames = max(2, min(look.max_frames, budget.min_frames))
    for fewer in range(look.max_frames - look.max_frames % 2, frames - 1, -2):
        look = replace(look, max_frames=fewer)
        yield look
    least = budget.least_pixels(look)
    while look.max_pixels > least:
        look = replace(look, max_pixels=max(least, int(look.max_pixels * _SHRINK)))
        yield look


def _media_tokens(row: Row, shown: Sequence[Shown], look: Look, encoder: Encoder) -> int | None:
    """Tokens of the media by another look, from what is shown by the first; None: too few frames.

    To save making pictures that are still too many; what is used is measured as it is.
    """
    try:
        counts = frame_counts(row.media, look)
    except UsageError:
        return None
    merged = encoder.processor.video_processor.merge_size**2
    tokens = 0
    for media, one, count in zip(row.media, shown, counts, strict=True):
        frames = 2 if media.kind == "image" else min(count, len(one.pictures))
        size = fitted_size(*jpeg_size(one.pictures[0].jpeg), look.max_pixels)
        tokens += encoder.patches(frames, size) // merged
    return tokens


def _too_long(first: Planned, budget: Budget, look: Look) -> str:
    return (
        f"it is {first.measure.tokens:,} tokens with {first.frames} frames, and still over "
        f"{budget.max_tokens:,} with {min(first.frames, budget.min_frames)} frames of at most "
        f"{budget.least_pixels(look):,} pixels: shorten it, or allow more (max_row_tokens)"
    )


# ---------------------------------------------------------------- memory


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a model that decide how much memory its activations take."""

    hidden: int
    layers: int
    key_value: int
    inner: int
    vocabulary: int
    heads: int
    vision_hidden: int
    vision_layers: int
    vision_inner: int
    patch_pixels: int
    """Numbers of one patch: channels x frames x side x side."""


def shape_of(config: Any) -> Shape:
    """Reads a Qwen2-VL's, Qwen2.5-VL's or Qwen3-VL's config of transformers."""
    text, vision = config.text_config, config.vision_config
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    inner = getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio)
    return Shape(
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        key_value=text.num_key_value_heads * head,
        inner=text.intermediate_size,
        vocabulary=text.vocab_size,
        heads=heads,
        vision_hidden=width,
        vision_layers=vision.depth,
        vision_inner=inner,
        patch_pixels=3 * vision.temporal_patch_size * vision.patch_size**2,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What of a recipe decides its memory.

    `weight_bytes` is of one weight that is not trained, but for so many that are `in_4_bits`.
    Weights that are trained are kept in `trained_bytes` each, and so are their gradients. `rank` is
    0 for training without an adapter.
    """

    batch: int = 1
    weight_bytes: float = 2.0
    in_4_bits: int = 0
    trained_bytes: float = 4.0
    compute_bytes: float = 2.0
    rank: int = 16
    dropout: bool = True
    trains_vision: bool = False
    checkpointing: bool = True


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device that holds the whole model; what the libraries take comes on top."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def estimate(
    shape: Shape, parameters: Mapping[str, tuple[int, int]], plan: Plan, training: Training
) -> Memory:
    """The peak of a step whose rows are all as long as the longest of the plan.

    `parameters` are (trained, all) weights of each component.

    weights        of each its bytes
    gradients      of each trained weight
    optimizer      AdamW: two float32 of each trained weight
    activations    with checkpointing: the input of every layer, and everything within one of them;
                   without it: everything within every layer, and where all weights are trained
                   their copies in bf16. See `layer_bytes`, `vision_bytes`
    logits         of each place that is computed: bf16 and float32 logits, their log-softmax and
                   gradient: 14 bytes a word of the vocabulary
    """
    longest = [one.measure for one in plan.used]
    tokens = training.batch * max((one.tokens for one in longest), default=0)
    answers = training.batch * max((one.answer_tokens for one in longest), default=0)
    patches = training.batch * max((one.patches for one in longest), default=0)
    trained = sum(count for count, _ in parameters.values())
    every = sum(count for _, count in parameters.values())
    language = _held(
        layer_bytes(shape, training), shape.layers, shape.hidden, training
    ) + 2 * shape.hidden * (training.compute_bytes + 4)
    # Autocast computes with copies of trained weights; without checkpointing each is kept, those of
    # an adapter too, which are small and counted in `layer_bytes`.
    kept = not training.rank and not training.checkpointing
    narrower = training.compute_bytes < training.trained_bytes
    copies = trained * training.compute_bytes if kept and narrower else 0.0
    whole = every - trained - training.in_4_bits
    return Memory(
        weights=round(
            training.in_4_bits * _BYTES_IN_4_BITS
            + whole * training.weight_bytes
            + trained * training.trained_bytes
        ),
        gradients=round(trained * training.trained_bytes),
        optimizer=8 * trained,
        activations=round(tokens * language + patches * vision_bytes(shape, training) + copies),
        logits=14 * answers * shape.vocabulary,
    )


def layer_bytes(shape: Shape, training: Training) -> float:
    """What one language layer keeps of a token for its gradients, in bytes.

    Counted by autograd's own hooks (`saved_tensors_hooks`) over layers of Qwen2-VL's proportions,
    transformers 5.19, peft 0.21, sdpa, bf16 and float32; a test repeats it. With an adapter the
    frozen projections keep no inputs; beside bf16 the adapters keep float32 copies of theirs, and
    dropout keeps its results and its masks.
    """
    h, kv, i, c = shape.hidden, shape.key_value, shape.inner, training.compute_bytes
    attention = 4 * shape.heads + 8
    adapter = 4 * 7 * training.rank
    if c > 2:
        wide, inner = (8, 4) if not training.rank else (16, 5) if training.dropout else (6, 4)
        return c * (wide * h + 2 * kv + inner * i) + attention + adapter
    if not training.rank:
        return c * (10 * h + 2 * kv + 4 * i) + attention
    inputs = 4 * (6 * h + i) * (2 if training.dropout else 1)
    return c * (6 * h + 2 * kv + 3 * i) + attention + inputs + adapter


def vision_bytes(shape: Shape, training: Training) -> float:
    """What the vision tower keeps of a patch, in bytes; a frozen one holds one layer for a moment.

    Counted as in `layer_bytes`, as multiples of its width, for a feed-forward layer of four times
    that. Of a frozen tower the pixels, the stream and one layer's widest step are alive.
    """
    c = training.compute_bytes
    pixels = (4 + c) * shape.patch_pixels
    if not training.trains_vision:
        return pixels + c * (6 * shape.vision_hidden + 2 * shape.vision_inner)
    per_layer = 23 * c
    if training.rank:
        per_layer += 14 * (c <= 2) + 28 * training.dropout
    held = _held(
        per_layer * shape.vision_hidden, shape.vision_layers, shape.vision_hidden, training
    )
    return pixels + held


def _held(per_layer: float, layers: int, hidden: int, training: Training) -> float:
    if training.checkpointing:
        return layers * hidden * training.compute_bytes + per_layer
    return layers * per_layer


# ---------------------------------------------------------------- telling


def spread_of(values: Sequence[int]) -> dict[str, int]:
    """Median, 95th percentile and largest, each a value that occurs; zeros for none."""
    ordered = sorted(values) or [0]
    last = len(ordered) - 1
    return {
        "p50": ordered[round(0.5 * last)],
        "p95": ordered[round(0.95 * last)],
        "max": ordered[-1],
    }


def as_dict(
    plan: Plan,
    parameters: Mapping[str, tuple[int, int]] | None = None,
    memory: Memory | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """The plan for programs. What is not known, as the time before steps were taken, is null."""
    used = plan.used
    return {
        "rows_used": len(used),
        "rows_reduced": [
            {
                "origin": str(one.row.origin),
                "max_frames": one.look.max_frames,
                "max_pixels": one.look.max_pixels,
            }
            for one in plan.reduced
        ],
        "rows_dropped": [{"origin": str(one.origin), "reason": one.reason} for one in plan.dropped],
        "look": asdict(plan.look),
        "max_row_tokens": plan.budget.max_tokens,
        "tokens": spread_of(plan.lengths),
        "tokens_total": sum(plan.lengths),
        "answer_tokens": spread_of([one.measure.answer_tokens for one in used]),
        "media_tokens": spread_of([one.measure.media_tokens for one in used]),
        "frames": spread_of([one.frames for one in used]),
        "frames_total": sum(one.frames for one in used),
        "pixels": spread_of([one.pixels for one in used if one.pixels]),
        "parameters": None
        if parameters is None
        else {
            name: {"trained": trained, "all": every}
            for name, (trained, every) in parameters.items()
        },
        "memory_bytes": None if memory is None else asdict(memory) | {"total": memory.total},
        "seconds": seconds,
    }


def as_text(
    plan: Plan,
    parameters: Mapping[str, tuple[int, int]] | None = None,
    memory: Memory | None = None,
    seconds: float | None = None,
    *,
    limit: int = 20,
) -> list[str]:
    """The plan for people, line by line; at most `limit` rows of those dropped and reduced."""
    told = as_dict(plan, parameters, memory, seconds)
    lines = [
        f"rows      {len(plan.used):,} used, {len(plan.reduced):,} of them with less to see, "
        f"{len(plan.dropped):,} dropped",
        *(
            f"{name:<9} p50 {told[key]['p50']:,}   p95 {told[key]['p95']:,}   "
            f"max {told[key]['max']:,}   {of}"
            for name, key, of in (
                ("tokens", "tokens", f"of a row; {plan.budget.max_tokens:,} are allowed"),
                ("answers", "answer_tokens", "tokens of a row that are learned"),
                ("frames", "frames", "of a row"),
                ("pixels", "pixels", "of a frame"),
            )
        ),
    ]
    for name, (trained, every) in (parameters or {}).items():
        share = trained / every if every else 0.0
        lines.append(f"{name:<9} {trained:,} of {every:,} parameters are trained ({share:.2%})")
    if memory is not None:
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in asdict(memory).items())
        lines.append(f"memory    about {_gib(memory.total)}: {parts}")
    lines.append(
        "time      not known before steps were taken"
        if seconds is None
        else f"time      about {_clock(seconds)}"
    )
    lines += dropped_lines(plan, limit)
    lines += _listed(
        "reduced",
        [
            f"{one.row.origin}: {one.frames} frames of at most {one.pixels:,} pixels"
            for one in plan.reduced
        ],
        limit,
    )
    return lines


def dropped_lines(plan: Plan, limit: int = 20) -> list[str]:
    """The rows that are not used, at most `limit` of them, each with its reason."""
    return _listed("dropped", [f"{one.origin}: {one.reason}" for one in plan.dropped], limit)


def _listed(name: str, lines: Sequence[str], limit: int) -> list[str]:
    listed = [f"{name:<9} {line}" for line in lines[:limit]]
    more = len(lines) - limit
    return [*listed, f"{name:<9} and {more:,} more; see --json"] if more > 0 else listed


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
