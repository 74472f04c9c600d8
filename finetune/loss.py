"""The loss: cross entropy of the answers' tokens, and of nothing else.

`lm_head` is computed only where a label follows. With Qwen2-VL's 152,000 words, a row of 4,000
tokens has 2.4 GB of logits in fp32, and an answer of 20 tokens needs 12 MB of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from finetune.dataset import IGNORE


def label_places(labels: Tensor) -> Tensor:
    """Where logits are needed, (K,): places whose next token is a label in any row.

    `labels` are (rows, tokens), IGNORE where nothing is to be learned; one list of places serves
    all rows of a batch, as that is what `logits_to_keep` of transformers takes.
    """
    return (labels[:, 1:] != IGNORE).any(dim=0).nonzero().squeeze(1)


def answer_logits(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (answer tokens, words) in fp32, the tokens themselves, and the row of each.

    `inputs` are a batch of `collate`. The forward pass is the model's own, so that what wraps it
    (DDP, FSDP, DeepSpeed) sees it.
    """
    given = dict(inputs)
    labels = given.pop("labels")
    places = label_places(labels)
    logits = model(**given, logits_to_keep=places, use_cache=False).logits
    targets = labels[:, places + 1]
    learned = targets != IGNORE
    return logits[learned].float(), targets[learned], learned.nonzero()[:, 0]


def answer_loss(model: Any, inputs: Mapping[str, Any], tokens: Tensor | float) -> Tensor:
    """The summed loss of a batch, divided by `tokens`: those of all batches of a step."""
    logits, targets, _ = answer_logits(model, inputs)
    return functional.cross_entropy(logits, targets, reduction="sum") / tokens


@torch.no_grad()
def answer_scores(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Per row (rows, 3): summed loss, tokens of the answer, and how many of them were right."""
    logits, targets, rows = answer_logits(model, inputs)
    loss = functional.cross_entropy(logits, targets, reduction="none")
    right = (logits.argmax(dim=-1) == targets).float()
    scores = torch.stack((loss, torch.ones_like(loss), right), dim=1)
    sums = scores.new_zeros(len(inputs["labels"]), 3)
    return sums.index_add_(0, rows, scores)
