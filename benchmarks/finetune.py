"""What training costs: frames a second with the cache on and off, and memory against row length.

    python benchmarks/finetune.py                 both tables
    python benchmarks/finetune.py --frames        the first: tiny-qwen2-vl on a generated film
    python benchmarks/finetune.py --memory        the second: a model of a few layers, made up

Frames: the same rows are encoded for training in a process each: decoded from the video each time,
and found in the cache that an earlier epoch filled. Beside it the training by
`vidqa finetune` from its second epoch on, with the caches of frames and of a frozen tower's output
on and off.

Memory: one step of LoRA (forward, loss, backward) over one row of so many tokens, in a process
each; the peak of its resident memory, less what it had when the model was loaded. The model has
Qwen2-VL's vocabulary of 151,936 words, since logits are what `lm_head` on the answer's places alone
saves, and layers of the width and number given below.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TINY = ROOT / "vidqa" / "demo" / "models" / "tiny-qwen2-vl"

FILMS, ROWS, WIDTH, EPOCHS = 2, 64, 1280, 6
LENGTHS = (512, 1024, 2048, 4096)
ANSWER_TOKENS = 32
# Threads that wait for each other count as work: one each, where CPU seconds are compared.
ALONE = os.environ | {"OMP_NUM_THREADS": "1"}
# Of the made-up model: a tenth of Qwen2-VL-2B's layers at a third of its width.
HIDDEN, LAYERS, VOCABULARY = 512, 3, 151_936


# ------------------------------------------------------------ frames


def make_rows(folder: Path) -> Path:
    from finetune.formats import write
    from vidqa.demo import domain, films, world

    made = [world.sample_film(domain.FIRST_TRAINING_SEED + at) for at in range(FILMS)]
    films.write_films(made, folder, width=WIDTH)
    rows = domain.new_rows(made, folder)[:ROWS]
    write(rows, folder / "rows.jsonl", "vidqa")
    return folder / "rows.jsonl"


def encode(rows_file: str, cache: str) -> dict[str, float]:
    """Frames a second of encoding all rows once, from the cache if a folder of one is given."""
    from finetune.dataset import Encoder, load_processor
    from finetune.formats import read
    from finetune.layout import Look
    from finetune.media import show_row
    from finetune.shelf import Shelf

    rows = read(Path(rows_file))
    look = Look(max_frames=12, frames_per_moment=4, max_pixels=9408, sample_fps=2.0)
    shelf = Shelf(Path(cache)) if cache else None
    encoder = Encoder(load_processor(str(TINY)), look, "qwen2-vl", shelf)
    if shelf is not None:  # the epoch before
        for row in rows:
            show_row(row, look, shelf)
    frames = 4 * len(rows)
    began, cpu = time.perf_counter(), time.process_time()
    for row in rows:
        encoder(row)
    wall, used = time.perf_counter() - began, time.process_time() - cpu
    return {"frames": frames, "wall_seconds": wall, "cpu_seconds": used}


def train(rows_file: str, folder: Path, caches: bool) -> dict[str, float]:
    """Frames a CPU second from the second epoch on: a run of many, less one of one."""
    flags = ["--config", str(ROOT / "configs" / "finetune-demo.yaml"), "--eval-fraction", "0"]
    flags += [] if caches else ["--cache-gib", "0", "--feature-gib", "0"]
    seconds: dict[int, float] = {}
    for epochs in (1, EPOCHS):
        output = folder / f"epochs-{epochs}-{caches}"
        command = [sys.executable, "-m", "vidqa.cli", "finetune", "--data", rows_file, *flags]
        command += ["--epochs", str(epochs), "--cache", str(folder / "cache")]
        command += ["--output", str(output)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=ALONE)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds[epochs] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"frames": (EPOCHS - 1) * 4 * ROWS, "cpu_seconds": seconds[EPOCHS] - seconds[1]}


def print_frames() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(folder / "films")
        found = {
            ("encoding a row", "off"): child("encode", str(rows), ""),
            ("encoding a row", "on"): child("encode", str(rows), str(folder / "cache")),
            ("training, second epoch on", "off"): train(str(rows), folder, caches=False),
            ("training, second epoch on", "on"): train(str(rows), folder, caches=True),
        }
    print(f"{FILMS} films of {WIDTH} pixels, {ROWS} rows of 4 frames, frames a CPU second\n")
    print("| | cache off | cache on | ratio |")
    print("| --- | --- | --- | --- |")
    for what in dict.fromkeys(name for name, _ in found):
        off, on = (
            found[what, cache]["frames"] / found[what, cache]["cpu_seconds"]
            for cache in ("off", "on")
        )
        print(f"| {what} | {off:.1f} | {on:.1f} | {on / off:.1f} |")


# ------------------------------------------------------------ memory


def made_up_model() -> Any:
    from vidqa.compat import declare_torchvision_operators

    declare_torchvision_operators()
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    from finetune.recipe import LANGUAGE_TARGETS

    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": 4 * HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [8, 12, 12],
            },
        },
        vision_config={"depth": 1, "embed_dim": 64, "num_heads": 2, "hidden_size": HIDDEN},
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=LANGUAGE_TARGETS)
    return get_peft_model(model, lora)


def step(tokens: int, kept: int) -> dict[str, float]:
    """MiB that one step adds to what the loaded model takes; and its CPU seconds and loss.

    With `kept`, logits are computed where an answer follows, else everywhere.
    """
    import torch

    from finetune.dataset import IGNORE
    from finetune.loss import answer_loss

    torch.set_num_threads(2)
    model = made_up_model()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 100_000, (1, tokens), generator=generator)
    labels = torch.full_like(ids, IGNORE)
    labels[:, -ANSWER_TOKENS:] = ids[:, -ANSWER_TOKENS:]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    loaded = forget_peak_mib()
    began = time.process_time()
    if kept:
        loss = answer_loss(model, batch, ANSWER_TOKENS)
    else:
        loss = model(**batch, use_cache=False).loss
    loss.backward()
    used = time.process_time() - began
    return {"mib": peak_mib() - loaded, "cpu_seconds": used, "loss": float(loss)}


def forget_peak_mib() -> float:
    """Lets the peak begin anew (Linux); returns what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(one.split()[1]) for one in lines if one.startswith("VmHWM")) / 1024


def print_memory() -> None:
    print(f"\nMiB that a step takes; LoRA, {LAYERS} layers of {HIDDEN}, {VOCABULARY:,} words\n")
    print(
        "| tokens | logits everywhere | where answers follow | ratio | CPU s | CPU s | same loss |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for tokens in LENGTHS:
        full, kept = (child("step", str(tokens), str(which)) for which in (0, 1))
        same = abs(full["loss"] - kept["loss"]) < 1e-4 * full["loss"]
        print(
            f"| {tokens:,} | {full['mib']:,.0f} | {kept['mib']:,.0f} "
            f"| {full['mib'] / kept['mib']:.1f} | {full['cpu_seconds']:.1f} "
            f"| {kept['cpu_seconds']:.1f} | {'yes' if same else 'NO'} |"
        )


# ------------------------------------------------------------ processes


def child(what: str, *given: str) -> dict[str, float]:
    """What a fresh process measures, so that nothing is warm and peaks are its own."""
    command = [sys.executable, __file__, "--child", what, *given]
    environ = ALONE if what == "encode" else dict(os.environ)
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--frames", action="store_true", help="the first table alone")
    parser.add_argument("--memory", action="store_true", help="the second table alone")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    told = parser.parse_args(given)
    if told.child:
        what, *rest = told.child
        found = encode(*rest) if what == "encode" else step(*map(int, rest))
        print(json.dumps(found))
        return
    if told.frames or not told.memory:
        print_frames()
    if told.memory or not told.frames:
        print_memory()


if __name__ == "__main__":
    main()
