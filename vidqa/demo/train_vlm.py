"""Trains tiny-qwen2-vl on films of training seeds: `python -m vidqa.demo.train_vlm --work DIR`.

Three stages, each resumable from its last checkpoint:

    see      the vision tower alone: each visual token must be readable, with the word embeddings
             as the classifier, as the words for what it shows (colour, kind, motion, place ...)
    read     the language layers alone: visual tokens are made from those same words, so questions
             are learned without drawing or seeing a single picture
    answer   both together, on drawn pictures

`see` and `read` share nothing but the word embeddings, which stay fixed, so they run side by side.

Why the stages: trained together from nothing, the model learns to see quickly and to look up
facts very late. Apart, the second takes no pictures and both have dense targets. Answers alone say
little about where to look either, so two heads are told (`pointing_loss`); without that, citations
among several moments stayed at chance after 500 steps, with it they were right for 0.94.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidqa.compat import declare_torchvision_operators
from vidqa.demo import tiny_vlm, world
from vidqa.demo.curves import draw_curves
from vidqa.demo.lessons import (
    FIRST_WEIGHTS,
    IGNORE,
    LATER_STEP,
    LATER_WEIGHTS,
    Batch,
    Encoder,
    Pointers,
    point,
    sample_cells,
    sample_context,
)
from vidqa.demo.sight import (
    Reader,
    Words,
    encode,
    made_up_tokens,
    sample_sight,
    see_loss,
    to_patches,
)

# One head of each of these layers is told where to look: first at the thing that the question
# names, then at what answers it.
ANCHOR_LAYER, ANSWER_LAYER, TOLD_HEAD = 2, 3, 0


def pointing_loss(pointers: Pointers, looks: dict[int, Tensor]) -> Tensor:
    """How far the two heads are from looking where they shall: mean -log of the weight there."""
    losses = []
    for layer, target in ((ANCHOR_LAYER, pointers.anchor), (ANSWER_LAYER, pointers.answer)):
        scores = looks[layer][pointers.rows, pointers.places]
        there = scores.masked_fill(~target, -math.inf)
        losses.append((scores.logsumexp(1) - there.logsumexp(1)).mean())
    return torch.stack(losses).mean()


def _watched_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    looks: dict[int, Tensor] | None = None, **named: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The usual attention; `looks` is given the scores of the heads that are told where to look."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if looks is not None and module.layer_idx in (ANCHOR_LAYER, ANSWER_LAYER):
        assert attention_mask is not None
        scores = query[:, TOLD_HEAD] @ key[:, TOLD_HEAD].transpose(1, 2) * named["scaling"]
        looks[module.layer_idx] = scores.masked_fill(~attention_mask[:, 0], -math.inf)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **named)


def answer_logits(
    model: Any, batch: Batch, visual: Tensor
) -> tuple[Tensor, Tensor, Tensor, dict[int, Tensor]]:
    """Logits at the answers' places, their targets, the loss of the moments' numbers, and looks.

    The last loss asks every visual token, after the first layer, which moment it belongs to: a
    citation needs that, and from the answers alone it is learned very late.
    """
    embeds = model.model.language_model.embed_tokens(batch.input_ids)
    visual_at = batch.visual.flatten().nonzero().squeeze(1)
    flat = embeds.flatten(0, 1).index_copy(0, visual_at, visual.to(embeds.dtype))
    looks: dict[int, Tensor] = {}
    outputs = model.model.language_model(
        inputs_embeds=flat.view_as(embeds),
        position_ids=batch.position_ids,
        attention_mask=batch.mask,
        use_cache=False,
        output_hidden_states=True,
        looks=looks,
    )
    tokens = outputs.hidden_states[1].flatten(0, 1)[visual_at]
    table = model.lm_head.weight
    number_loss = functional.cross_entropy(4 * tokens @ table.T, batch.number_of)
    said = batch.labels != IGNORE
    logits = model.lm_head(outputs.last_hidden_state[said])
    return logits, batch.labels[said], number_loss, looks


def answered(batch: Batch, logits: Tensor, targets: Tensor) -> dict[str, list[int]]:
    """Per type: questions answered wholly right (every token, given the ones before) and asked."""
    right = (logits.argmax(-1) == targets).long()
    which = batch.question_of[batch.labels != IGNORE]
    whole = torch.ones(len(batch.asked), dtype=torch.long)
    whole.scatter_reduce_(0, which, right, "amin")
    score: dict[str, list[int]] = {}
    for question, correct in zip(batch.asked, whole.tolist(), strict=True):
        entry = score.setdefault(question.type, [0, 0])
        entry[0] += correct
        entry[1] += 1
    return score


# ---------------------------------------------------------------- the loop


@dataclass(frozen=True)
class Stage:
    """How a stage is run. `batch` counts moments or contexts; rates peak after `warmup` steps.

    `rate` is AdamW's, `matrix_rate` Muon's, which takes the matrices of the language layers.
    """

    steps: int
    batch: int
    rate: float
    matrix_rate: float = 0.0
    warmup: int = 200


STAGES = {
    "see": Stage(steps=4000, batch=24, rate=2.5e-3),
    "read": Stage(steps=2400, batch=4, rate=2e-3, matrix_rate=0.01, warmup=100),
    "answer": Stage(steps=800, batch=4, rate=3e-4, matrix_rate=0.005, warmup=50),
}


def share_of_peak(stage: Stage, step: int) -> float:
    """Of a rate, at this step: linear warm-up, then a cosine down to 2 %."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


def new_model(seed: int = 0) -> tuple[Any, Any]:
    """The untrained model and its tokenizer. Word embeddings have length 1: see `Reader`.

    Attention starts out as a look-up: queries equal keys, so like attends to like, and the output
    undoes the values, so what is found arrives as the words it is made of. From a random start,
    looking up is found only after very many steps.
    """
    declare_torchvision_operators()
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    torch.manual_seed(seed)
    tokenizer = tiny_vlm.build_tokenizer()
    model = tiny_vlm.build_model(tokenizer)
    AttentionInterface.register("watched", _watched_attention)
    AttentionMaskInterface.register("watched", sdpa_mask)
    model.model.language_model.set_attn_implementation("watched")
    table = model.model.language_model.embed_tokens.weight
    layers = model.model.language_model.layers
    # Of its own seed: `see` and `read` share it, whatever else of the model changes.
    drawn = torch.randn(table.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        table.copy_(functional.normalize(drawn, dim=-1))
        for layer in layers:
            attention = layer.self_attn
            nn.init.orthogonal_(attention.q_proj.weight)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            nn.init.orthogonal_(attention.v_proj.weight)
            attention.o_proj.weight.copy_(0.5 * attention.v_proj.weight.T)
        # Frames start out knowing their moment's number, which stands four or five places before
        # them, and every word what was found for the word before it.
        for head in (0, 1):
            _look_back(layers[0].self_attn, head, 4.5, gain=2.0)
        for layer in layers[:3]:
            _look_back(layer.self_attn, 2, 1.0, gain=1.0)
        for block, patches_away in zip(model.model.visual.blocks, (1.0, 2.0), strict=False):
            _look_beside(block.attn, patches_away)
    return model, tokenizer


def _look_back(attention: Any, head: int, tokens_back: float, gain: float) -> None:
    """Starts a head of the language layers looking that many places back; see `_look_beside`.

    `gain` says how loud what it finds is.
    """
    size = attention.head_dim
    mine = slice(head * size, (head + 1) * size)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[mine] *= 0.3
        projection.bias[mine] = 0
    for at in range(3):
        frequency = 1_000_000.0 ** (-at / (size // 2))
        cosine, sine = head * size + at, head * size + at + size // 2
        attention.q_proj.bias[cosine] = 4.5 * math.cos(frequency * tokens_back)
        attention.q_proj.bias[sine] = -4.5 * math.sin(frequency * tokens_back)
        attention.k_proj.bias[cosine] = 4.5
    attention.o_proj.weight[:, mine] = gain * attention.v_proj.weight[mine].T


def _look_beside(attention: Any, patches_away: float) -> None:
    """Starts each head looking at patches that far away, in a direction of its own.

    A transformer that starts with such convolutions learns shapes from far fewer pictures
    (d'Ascoli et al., ConViT, 2021). Rotary positions make it a matter of two biases: a key of
    angle 0 and a query turned by the offset agree most where the offset is met.
    """
    heads, size = attention.num_heads, attention.head_dim
    bias = attention.qkv.bias.view(3, heads, size)
    attention.qkv.weight.view(3, heads, size, -1)[:2] *= 0.3
    frequencies = 10_000.0 ** (-torch.arange(2) / (size // 4))
    for head in range(heads):
        turn = 2 * math.pi * head / heads
        offset = (patches_away * math.sin(turn), patches_away * math.cos(turn))
        for axis, along in enumerate(offset):
            for at, frequency in enumerate(frequencies.tolist()):
                cosine, sine = axis * size // 4 + at, axis * size // 4 + at + size // 2
                bias[0, head, cosine] = 4.5 * math.cos(frequency * along)
                bias[0, head, sine] = 4.5 * math.sin(frequency * along)
                bias[1, head, cosine] = 4.5


def optimizers_for(stage: Stage, model: Any, reader: Reader) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the language layers, AdamW for all else that is to be trained.

    Muon (K. Jordan and others, 2024) learned in 500 steps what AdamW had not learned in 800.
    """
    trained = [one for one in (*model.parameters(), *reader.parameters()) if one.requires_grad]
    matrices = [
        one
        for one in model.model.language_model.layers.parameters()
        if one.ndim == 2 and one.requires_grad
    ]
    others = [one for one in trained if not any(one is matrix for matrix in matrices)]
    groups = [
        {"params": [one for one in others if one.ndim > 1], "weight_decay": 0.02},
        {"params": [one for one in others if one.ndim <= 1], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98))
    if not matrices:
        return [plain]
    return [plain, torch.optim.Muon(matrices, lr=stage.matrix_rate, weight_decay=0.01)]


def run_stage(name: str, work: Path, seed: int = 0) -> None:
    """Runs a stage from its last checkpoint to its end; writes `NAME.pt` and `NAME.jsonl`."""
    stage = STAGES[name]
    model, tokenizer = new_model(seed)
    words = Words(tokenizer)
    reader = Reader(model.config.text_config.hidden_size, model.config.vision_config.embed_dim)
    _prepare(name, model, reader, work)
    optimizers = optimizers_for(stage, model, reader)
    peaks = [[group["lr"] for group in one.param_groups] for one in optimizers]
    trained = [
        weight for one in optimizers for group in one.param_groups for weight in group["params"]
    ]
    checkpoint = work / f"{name}.pt"
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        reader.load_state_dict(saved["reader"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        first = saved["step"]
    model.train()
    log = (work / f"{name}.jsonl").open("a")
    sums: dict[str, list[float]] = {}
    began = time.monotonic()
    for step in range(first, stage.steps):
        # A step's data follow from its number, so a resumed run sees what an unbroken one would.
        rng = random.Random(f"{seed} {name} {step}")
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * share_of_peak(stage, step)
        loss, scores = _STEPS[name](rng, model, reader, tokenizer, words, stage, step)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for key, (value, weight) in scores.items():
            entry = sums.setdefault(key, [0.0, 0.0])
            entry[0] += value
            entry[1] += weight
        if (step + 1) % 100 == 0 or step + 1 == stage.steps:
            row = {key: round(a / max(b, 1e-9), 4) for key, (a, b) in sorted(sums.items())}
            sums = {}
            row = {"step": step + 1, "seconds": round(time.monotonic() - began, 1), **row}
            log.write(json.dumps(row) + "\n")
            log.flush()
        if (step + 1) % 500 == 0 or step + 1 == stage.steps:
            state = {"model": model.state_dict(), "reader": reader.state_dict()}
            state |= {"optimizers": [one.state_dict() for one in optimizers], "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").rename(checkpoint)


def _prepare(name: str, model: Any, reader: Reader, work: Path) -> None:
    """Loads what earlier stages made and marks what this one trains; word embeddings never are."""
    language, vision = model.model.language_model, model.model.visual
    if name == "see":
        language.requires_grad_(False)
    elif name == "read":
        vision.requires_grad_(False)
        reader.requires_grad_(False)
    else:
        saw = torch.load(work / "see.pt", weights_only=True)
        read = torch.load(work / "read.pt", weights_only=True)["model"]
        seen = {key: value for key, value in saw["model"].items() if ".visual." in key}
        model.load_state_dict(read | seen)
        reader.load_state_dict(saw["reader"])
    language.embed_tokens.weight.requires_grad_(False)


Scores = dict[str, tuple[float, float]]


def _see_step(
    rng: random.Random, model: Any, reader: Reader, tokenizer: Any, words: Words,
    stage: Stage, step: int,
) -> tuple[Tensor, Scores]:  # fmt: skip
    sight = sample_sight(rng, [world.sample_scene(rng) for _ in range(stage.batch)], pairs=1)
    tokens, patches = encode(model.model.visual, to_patches(sight.frames))
    table = model.model.language_model.embed_tokens.weight.detach()
    loss, accuracy = see_loss(reader.logits(tokens, table, words), sight.cells)
    loss = loss + 2 * reader.patch_loss(patches, sight.patches)
    # What no word reads would only drown what the words say.
    loss = loss + 0.05 * tokens.square().sum(-1).mean()
    scores: Scores = {group: (value, 1) for group, value in accuracy.items() if value == value}
    return loss, {**scores, "loss": (loss.item(), 1)}


def _read_step(
    rng: random.Random, model: Any, reader: Reader, tokenizer: Any, words: Words,
    stage: Stage, step: int,
) -> tuple[Tensor, Scores]:  # fmt: skip
    done = step / stage.steps
    # More moments, and the constant system message, only once looking up works.
    encoder = Encoder(tokenizer, with_system=done >= 0.8)
    most = 3 if done < 0.55 else 5
    weights = FIRST_WEIGHTS if step < LATER_STEP else LATER_WEIGHTS
    contexts = [sample_context(rng, most, 8, weights) for _ in range(stage.batch)]
    batch = encoder.batch(contexts)
    table = model.model.language_model.embed_tokens.weight.detach()
    cells = sample_cells(rng, contexts)
    tokens = made_up_tokens(rng, cells, table, words)
    return _answer_loss(model, batch, point(batch, contexts, cells), tokens)


def _answer_step(
    rng: random.Random, model: Any, reader: Reader, tokenizer: Any, words: Words,
    stage: Stage, step: int,
) -> tuple[Tensor, Scores]:  # fmt: skip
    contexts = [sample_context(rng, 5, 8) for _ in range(stage.batch)]
    batch = Encoder(tokenizer).batch(contexts)
    sight = sample_sight(rng, [scene for context in contexts for scene in context.shown])
    tokens, _ = encode(model.model.visual, to_patches(sight.frames))
    pointers = point(batch, contexts, sight.cells)
    loss, scores = _answer_loss(model, batch, pointers, tokens.flatten(0, 1))
    table = model.model.language_model.embed_tokens.weight
    seen, _ = see_loss(reader.logits(tokens, table, words), sight.cells)
    return loss + 0.05 * seen, {**scores, "see": (seen.item(), 1.0)}


def _answer_loss(
    model: Any, batch: Batch, pointers: Pointers, visual: Tensor
) -> tuple[Tensor, Scores]:
    logits, targets, number_loss, looks = answer_logits(model, batch, visual)
    loss = functional.cross_entropy(logits, targets)
    pointing = pointing_loss(pointers, looks)
    scores: Scores = {"loss": (loss.item(), 1), "numbers": (number_loss.item(), 1)}
    scores["pointing"] = (pointing.item(), 1)
    for kind, (right, asked) in answered(batch, logits, targets).items():
        scores[kind] = (right, asked)
        total = scores.get("all", (0, 0))
        scores["all"] = (total[0] + right, total[1] + asked)
    return loss + 0.1 * number_loss + 0.3 * pointing, scores


_STEPS = {"see": _see_step, "read": _read_step, "answer": _answer_step}


def export(work: Path) -> None:
    """Writes `work/tiny-qwen2-vl`, the trained model as vLLM and transformers load it."""
    model, _ = new_model()
    model.load_state_dict(torch.load(work / "answer.pt", weights_only=True)["model"])
    tiny_vlm.save(model, work / "tiny-qwen2-vl")
    logs = [work / f"{name}.jsonl" for name in STAGES]
    draw_curves(logs, work / "tiny-qwen2-vl" / "training.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--stage", choices=STAGES, help="run one stage only")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    for name in [options.stage] if options.stage else STAGES:
        run_stage(name, options.work)
    if options.stage in (None, "answer"):
        export(options.work)


if __name__ == "__main__":
    main()
