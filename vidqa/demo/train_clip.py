"""Trains tiny-clip on pictures of training seeds: `python -m vidqa.demo.train_clip --work DIR`.

An open_clip model like any other (its own config, CLIP's tokenizer), small enough for two cores.
The world knows exactly which scene a text fits, so the contrast has no false negatives: a text
is pulled to every picture that it fits and pushed from all others. Beside that, every picture is
asked which things it holds, which makes seeing quick to learn; that head is thrown away afterwards.
The image tower is open_clip's ResNet: convolutions learn shapes from far fewer pictures than a
transformer does.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from vidqa.compat import declare_torchvision_operators
from vidqa.demo import questions, world
from vidqa.demo.curves import draw_curves
from vidqa.demo.draw import draw_backdrop, draw_things
from vidqa.demo.lessons import near_copy
from vidqa.demo.train_vlm import Stage, share_of_peak

IMAGE_SIZE = 96
MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {
        "image_size": IMAGE_SIZE,
        "layers": [1, 1, 1, 1],
        "width": 16,
        "head_width": 32,
    },
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 49408,
        "width": 96,
        "heads": 3,
        "layers": 3,
    },
}
PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}
STEPS, BATCH, TEXTS_PER_SCENE, PEAK_RATE, WARMUP = 5000, 48, 2, 1.5e-3, 150
# What a picture can hold: every colour of every kind, and every background.
HOLDINGS = len(world.COLOURS) * len(world.KINDS) + len(world.BACKGROUNDS)


def draw_image(rng: random.Random, scene: world.WorldScene, progress: float) -> np.ndarray:
    """uint8 (96, 96, 3): drawn large, squashed as the embedder does; now and then within a fade."""
    backdrop = draw_backdrop(scene, 256, 192)
    image = draw_things(backdrop, scene.things, progress)
    pixels = np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX))
    light = rng.uniform(0.3, 1.0) if rng.random() < 0.1 else 1.0
    noise = np.random.default_rng(rng.randrange(1 << 32)).normal(0, rng.uniform(0, 5), pixels.shape)
    return np.clip(pixels * light + noise, 0, 255).astype(np.uint8)


def sample_texts(
    rng: random.Random, scene: world.WorldScene, count: int
) -> list[tuple[str, questions.Reference]]:
    """Queries and questions about a scene, each with the reference that decides what it fits."""
    texts = []
    for _ in range(count):
        thing = rng.choice(scene.things)
        question_type = rng.choice(questions.QUESTION_TYPES)
        reference = rng.choice(list(questions.references(thing, scene, question_type)))
        if rng.random() < 0.5:
            texts.append((str(reference).removeprefix("the "), reference))
        else:
            texts.append((questions.phrase(question_type, reference), reference))
    return texts


def holdings(scene: world.WorldScene) -> np.ndarray:
    """float32 (HOLDINGS,): 1 for each thing and the background that the picture holds."""
    found = np.zeros(HOLDINGS, np.float32)
    for thing in scene.things:
        kind = world.KINDS.index(thing.kind)
        found[world.COLOURS.index(thing.colour) * len(world.KINDS) + kind] = 1
    found[world.BACKGROUNDS.index(scene.background) - len(world.BACKGROUNDS)] = 1
    return found


def sample_batch(rng: random.Random) -> tuple[Tensor, list[str], Tensor, Tensor]:
    """Images (B, 3, H, W), texts, which text fits which image (T, B), and holdings (B, ...)."""
    scenes: list[world.WorldScene] = []
    while len(scenes) < BATCH:
        scene = world.sample_scene(rng)
        # Near copies differ in one thing: they teach what a batch at random would not.
        scenes += [scene, near_copy(rng, scene)] if rng.random() < 0.5 else [scene]
    scenes = scenes[:BATCH]
    moments = [rng.random() for _ in scenes]
    images = np.stack([draw_image(rng, *pair) for pair in zip(scenes, moments, strict=True)])
    asked = [text for scene in scenes for text in sample_texts(rng, scene, TEXTS_PER_SCENE)]
    fits = torch.tensor([[ref.fits(scene) for scene in scenes] for _, ref in asked])
    held = torch.from_numpy(np.stack([holdings(scene) for scene in scenes]))
    mean, std = (torch.tensor(PREPROCESS[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return pixels, [text for text, _ in asked], fits, held


def contrast(scores: Tensor, fits: Tensor) -> Tensor:
    """Cross entropy of each row against the columns that fit it; rows without any do not count."""
    some = fits.any(1)
    chosen = scores[some]
    hits = chosen.masked_fill(~fits[some], -math.inf)
    return (chosen.logsumexp(1) - hits.logsumexp(1)).mean()


def new_model() -> tuple[Any, Any]:
    """The untrained open_clip model and its tokenizer."""
    declare_torchvision_operators()
    import open_clip
    from open_clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(**MODEL_CONFIG, output_dict=True)
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])
    with torch.no_grad():
        model.token_embedding.weight.normal_(std=0.1)
    return model, tokenizer


def train(work: Path) -> None:
    """Runs to the end from the last checkpoint, then writes the folder `work/tiny-clip`."""
    model, tokenizer = new_model()
    head = nn.Linear(MODEL_CONFIG["embed_dim"], HOLDINGS)
    parameters = [*model.parameters(), *head.parameters()]
    # Without decay: the rows of words that never come up must stay as they are.
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    checkpoint, first = work / "clip.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        head.load_state_dict(saved["head"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    log = (work / "clip.jsonl").open("a")
    stage = Stage(steps=STEPS, batch=BATCH, rate=PEAK_RATE, warmup=WARMUP)
    sums, began = np.zeros(3), time.monotonic()
    for step in range(first, STEPS):
        rng = random.Random(f"clip {step}")
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * share_of_peak(stage, step)
        images, texts, fits, held = sample_batch(rng)
        tokens = tokenizer(texts)
        loss, held_loss, first_right = _losses(model, head, images, tokens, fits, held)
        optimizer.zero_grad(set_to_none=True)
        (loss + held_loss).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        sums += (loss.item(), held_loss.item(), first_right)
        if (step + 1) % 100 == 0:
            means = dict(
                zip(("loss", "held", "first_right"), (sums / 100).round(4).tolist(), strict=True)
            )
            row = {"step": step + 1, "seconds": round(time.monotonic() - began, 1), **means}
            sums[:] = 0
            print(json.dumps(row), file=log, flush=True)
        if (step + 1) % 500 == 0 or step + 1 == STEPS:
            state = {"model": model.state_dict(), "head": head.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").rename(checkpoint)
    save(model, tokenizer, work / "tiny-clip")
    draw_curves([work / "clip.jsonl"], work / "tiny-clip" / "training.png")


def _losses(
    model: Any, head: nn.Module, images: Tensor, tokens: Tensor, fits: Tensor, held: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Contrastive loss, loss of the holdings, and the share of texts whose best image fits."""
    pooled = model.encode_image(images)
    pictures = functional.normalize(pooled, dim=-1)
    said = functional.normalize(model.encode_text(tokens), dim=-1)
    scores = model.logit_scale.exp().clamp(max=100) * said @ pictures.T
    loss = contrast(scores, fits) + 0.5 * contrast(scores.T, fits.T)
    held_loss = functional.binary_cross_entropy_with_logits(head(pooled), held) * HOLDINGS / 4
    right = fits[torch.arange(len(fits)), scores.argmax(1)].float().mean().item()
    return loss, held_loss, right


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes a folder for open_clip's `local-dir:`, weights in half precision.

    Rows of words that the world never says are set to zero: they were never trained, and zeros
    pack to nothing.
    """
    from safetensors.torch import save_file

    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    unused = torch.ones(len(state["token_embedding.weight"]), dtype=torch.bool)
    unused[_known_tokens(tokenizer)] = False
    state["token_embedding.weight"][unused] = 0
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "open_clip_model.safetensors")
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _known_tokens(tokenizer: Any) -> Tensor:
    """Ids that the training texts use, taken from many of them."""
    rng = random.Random(0)
    texts = [text for _ in range(4000) for text, _ in sample_texts(rng, world.sample_scene(rng), 4)]
    known: Tensor = torch.unique(tokenizer(texts))
    return known


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    train(options.work)


if __name__ == "__main__":
    main()
