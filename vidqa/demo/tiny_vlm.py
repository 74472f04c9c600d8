"""The shape of tiny-qwen2-vl: a real Qwen2-VL, cut down to what the playground needs.

Builds the model, its tokenizer and its processors from nothing. Does not train: see `train_vlm`.
The architecture, the special tokens and the chat format are Qwen2-VL's, so vLLM, transformers and
PEFT treat it as they treat the big ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from vidqa.demo import questions, world
from vidqa.prompt import NOT_SHOWN, SYSTEM, time_range

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2VLForConditionalGeneration

FRAME_WIDTH, FRAME_HEIGHT = 112, 84
# Small patches, more of them merged: the usual 14 and 2 leave too little of a small shape.
PATCH, MERGE, FRAMES_PER_TOKEN = 7, 4, 2
CELL_COLUMNS, CELL_ROWS = FRAME_WIDTH // (PATCH * MERGE), FRAME_HEIGHT // (PATCH * MERGE)

# The order fixes their ids, which follow the ordinary vocabulary.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<|object_ref_start|>",
    "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
)  # fmt: skip

CHAT_TEMPLATE = """\
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'text' -%}
                {{- part.text -}}
            {%- elif part.type in ('video', 'video_url') -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- else -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\n' + render(message.content) + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""


def answer_text(question: questions.Question, number: int | None) -> str:
    """How the tiny model answers: `The star is red [2].`, where 2 numbers the moment.

    The subject again, then the answer, then the moment: each step needs one look-up only.
    """
    if question.statement is None:
        return NOT_SHOWN
    return f"{question.statement[0].upper()}{question.statement[1:]} [{number}]."


def _corpus() -> Iterator[str]:
    """Text to learn the vocabulary from: everything the world says, and labels of all digits."""
    rng = Random(0)
    names = [word for group in (world.KINDS, world.COLOURS, world.BACKGROUNDS) for word in group]
    names += [*world.MOTIONS, *world.WORDS, *world.NUMBERS, "thing", "things"]
    for word in names:
        yield from [f"the {word}: {word}."] * 60
    for seed in range(400):
        film = world.sample_film(seed)
        for number, scene in enumerate(film.scenes):
            yield f"[{number}] {film.name} {time_range(4 * number, 4 * number + 3)}\n"
            yield f'Subtitles: "{scene.subtitle or ""}"\n'
            for question_type in questions.QUESTION_TYPES:
                question = questions.ask_about(rng, film.scenes, question_type, number)
                if question:
                    yield f"Question: {question.text}\n"
                    yield answer_text(question, number)
        yield SYSTEM
        yield "system\nuser\nassistant\n"


def build_tokenizer(vocabulary_size: int = 640) -> PreTrainedTokenizerBase:
    """Qwen2's byte-level BPE with a vocabulary of the playground; any text can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    empty = Qwen2Tokenizer()
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    raw.train_from_iterator(_corpus(), trainer)
    learned = json.loads(raw.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],  # type: ignore[misc]
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=4096,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2VLForConditionalGeneration:
    """An untrained model of 5 M parameters for this tokenizer."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    def id_of(token: str) -> int:
        return int(str(tokenizer.convert_tokens_to_ids(token)))

    hidden = 160
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": hidden,
            "intermediate_size": 480,
            "num_hidden_layers": 5,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [8, 4, 4],
            },
            "bos_token_id": id_of("<|endoftext|>"),
            "eos_token_id": id_of("<|im_end|>"),
            "pad_token_id": id_of("<|endoftext|>"),
        },
        vision_config={
            "depth": 4,
            "embed_dim": 96,
            "hidden_size": hidden,
            "num_heads": 3,
            "mlp_ratio": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES_PER_TOKEN,
        },
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    return Qwen2VLForConditionalGeneration(config)  # type: ignore[no-untyped-call]


def build_processor(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Qwen2-VL's processor, set so that a 112 x 84 frame is taken as it is."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    sizes = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": FRAMES_PER_TOKEN,
        # vLLM sizes its start-up trial by the longest edge, so it is kept small.
        "size": {"shortest_edge": 28 * 28, "longest_edge": 4 * FRAME_WIDTH * FRAME_HEIGHT},
    }
    return Qwen2VLProcessor(  # type: ignore[no-untyped-call]
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(
            **sizes, do_sample_frames=False, cap_pixels_per_frame=False
        ),
        chat_template=CHAT_TEMPLATE,
    )


def save(model: Qwen2VLForConditionalGeneration, folder: Path) -> None:
    """Writes a folder that vLLM and transformers load; weights are kept in half precision."""
    from transformers import GenerationConfig

    tokenizer = build_tokenizer()
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=ends
    )
    model.half().save_pretrained(folder)  # type: ignore[no-untyped-call]
    build_processor(tokenizer).save_pretrained(folder)
