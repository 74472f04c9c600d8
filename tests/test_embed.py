"""The open_clip embedder: real small models of the real architectures, weights random."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vidqa import embed
from vidqa.embed import CONFIG, HUB_FILES, WEIGHTS, find_folder, load_embedder, repository
from vidqa.errors import ModelError

open_clip = embed.import_open_clip()
torch = pytest.importorskip("torch")

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
# Wide enough for int8, and with torch's attention, as CLIP B/32 has it.
WIDE_CLIP = {
    **TINY_CLIP,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 512, "head_width": 64, "patch_size": 16},
}
CLIP_PREPROCESSING = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "resize_mode": "shortest"}


def cut_down(name: str, **text: Any) -> dict[str, Any]:
    """A real configuration of open_clip with a small text tower."""
    config: dict[str, Any] = open_clip.get_model_config(name)
    config["text_cfg"].update(layers=1, **text)
    return config


def write_model(
    folder: Path, config: dict[str, Any], preprocessing: dict[str, Any], seed: int = 0
) -> Path:
    """A folder as `local-dir:` wants it, weights drawn at random and stored in half precision."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing}), "utf-8"
    )
    parts = json.loads(json.dumps(config))
    kind = open_clip.CustomTextCLIP if parts.pop("custom_text", False) else open_clip.CLIP
    with embed._without_initialisation():
        network = kind(**parts)
    torch.manual_seed(seed)
    for name, value in network.named_parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=value.shape[-1] ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(value)
    save_file(
        {name: value.half().contiguous() for name, value in network.state_dict().items()},
        folder / WEIGHTS,
    )
    return folder


def write_tokenizer(folder: Path) -> None:
    """Words and numbers, in the files that a hub's repository has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", "a", "red", "car", "in", "the", "snow"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", TINY_CLIP, CLIP_PREPROCESSING)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "wide", WIDE_CLIP, CLIP_PREPROCESSING)


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default's own image tower; its text tower cut to one layer and nine words."""
    config = cut_down("ViT-B-32-SigLIP2-256", vocab_size=9)
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    folder = write_model(tmp_path_factory.mktemp("models") / "siglip2", config, preprocessing)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def pe_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest of the family that the GPU's default is of."""
    config = cut_down("PE-Core-T-16-384", width=32, heads=2)
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    return write_model(tmp_path_factory.mktemp("models") / "pe-core", config, preprocessing)


def pictures(count: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    """Soft blobs of colour, more like pictures than noise is."""
    from PIL import Image

    noise = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    resized = [Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC) for one in noise]
    return np.stack([np.asarray(one) for one in resized])


def plain_open_clip(folder: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The vectors that open_clip gives when it is used as its own README says."""
    from PIL import Image

    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    network.eval()
    with torch.inference_mode():
        batch = torch.stack([preprocess(Image.fromarray(image)) for image in images])
        features = network.encode_image(batch, normalize=True)
    return np.asarray(features.numpy(), np.float32)


# ---------------------------------------------------------------- vectors


def test_images_get_the_vectors_that_plain_open_clip_gives(tiny: Path) -> None:
    images = pictures(5, 64)
    vectors = load_embedder(str(tiny), "cpu").embed_images(images)
    np.testing.assert_allclose(vectors, plain_open_clip(tiny, images), atol=1e-5)


def test_texts_get_the_vectors_that_plain_open_clip_gives(tiny: Path) -> None:
    texts = ["a red car", "snow falls on a very long road that goes on and on", ""]
    network = open_clip.create_model(f"local-dir:{tiny}").eval()
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(f"local-dir:{tiny}")(texts)
        plain = network.encode_text(tokens, normalize=True).numpy()
    vectors = load_embedder(str(tiny), "cpu").embed_texts(texts)
    np.testing.assert_allclose(vectors, plain, atol=1e-5)


def test_a_text_has_the_same_vector_alone_and_beside_longer_ones(tiny: Path) -> None:
    embedder = load_embedder(str(tiny), "cpu")
    alone = embedder.embed_texts(["a car"])
    beside = embedder.embed_texts(["a car", "a red car in the snow on a road at night"])
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-5)


def test_vectors_have_length_one_and_the_dimension_of_the_spec(tiny: Path) -> None:
    embedder = load_embedder(str(tiny), "cpu")
    for vectors in (embedder.embed_images(pictures(40, 64)), embedder.embed_texts(["a", "b"])):
        assert vectors.dtype == np.float32
        assert vectors.shape[1] == embedder.spec.dimension == 32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_nothing_to_embed_gives_no_vectors(tiny: Path) -> None:
    embedder = load_embedder(str(tiny), "cpu")
    assert embedder.embed_texts([]).shape == (0, 32)
    assert embedder.embed_images(np.empty((0, 64, 64, 3), np.uint8)).shape == (0, 32)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 64, 64, 3), np.float32)]
)
def test_images_of_another_size_or_kind_are_refused(tiny: Path, images: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(N, 64, 64, 3\) is needed"):
        load_embedder(str(tiny), "cpu").embed_images(images)


def test_the_spec_tells_size_resizing_and_weights(tiny: Path, tmp_path: Path) -> None:
    spec = load_embedder(str(tiny), "cpu").spec
    assert (spec.image_height, spec.image_width, spec.resize_mode) == (64, 64, "shortest")
    other = write_model(tmp_path / "other", TINY_CLIP, CLIP_PREPROCESSING, seed=1)
    assert load_embedder(str(other), "cpu").spec.weights != spec.weights
    shifted = write_model(
        tmp_path / "shifted", TINY_CLIP, {**CLIP_PREPROCESSING, "mean": [0, 0, 0]}
    )
    assert load_embedder(str(shifted), "cpu").spec.weights != spec.weights


def test_a_library_can_name_its_embedder_from_any_folder(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.parent)
    spec = load_embedder(tiny.name, "cpu").spec
    monkeypatch.chdir("/")
    assert load_embedder(spec.model, "cpu").spec == spec


def test_threads_may_share_an_embedder(tiny: Path) -> None:
    embedder = load_embedder(str(tiny), "cpu")
    texts = [" ".join(["car"] * (n + 1)) for n in range(12)]
    expected = [embedder.embed_texts([text])[0] for text in texts]
    found: dict[int, NDArray[np.float32]] = {}

    def work(n: int) -> None:
        found[n] = embedder.embed_texts([texts[n]])[0]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, vector in enumerate(expected):
        np.testing.assert_allclose(found[n], vector, atol=1e-5)


def cosines_to_float32(
    embedder: embed.OpenClipEmbedder, images: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """How far the vectors lie from those of the tower before it was quantised."""
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        features = embedder._network.visual((pixels - 0.5) / 0.5)
        exact = torch.nn.functional.normalize(features, dim=-1).numpy()
    return np.asarray((embedder.embed_images(images) * exact).sum(axis=1), np.float32)


# ---------------------------------------------------------------- what a start imports and reads


def test_a_plain_clip_imports_neither_timm_nor_transformers_nor_a_compiler(tiny: Path) -> None:
    heavy = ("timm", "transformers", "torch._dynamo")
    run_python(
        "import sys; from vidqa.embed import load_embedder; "
        f"load_embedder({str(tiny)!r}, 'cpu').embed_texts(['a']); "
        f"assert not [name for name in {heavy} if name in sys.modules]"
    )


def test_open_clip_is_imported_anew_for_a_model_that_needs_more_of_it(tiny: Path) -> None:
    run_python(
        "from vidqa.compat import import_open_clip; from vidqa.embed import load_embedder; "
        f"plain = load_embedder({str(tiny)!r}, 'cpu'); "
        "whole = import_open_clip(); "
        "assert whole.timm_model.timm and whole.hf_model.transformers; "
        "assert import_open_clip(frozenset()) is whole; "
        "import sys; roi = sys.modules['torchvision.ops.roi_align']; "
        "assert roi.is_compile_supported('cpu') in (True, False); "
        "plain.embed_texts(['a'])"
    )


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_of_half_precision_are_computed_with_in_float32(tiny: Path) -> None:
    from safetensors.torch import load_file

    assert {one.dtype for one in load_file(tiny / WEIGHTS).values()} == {torch.float16}
    network = embed.OpenClipEmbedder("tiny", tiny, "cpu")._network
    assert {one.dtype for one in network.parameters()} == {torch.float32}


def test_weights_are_mapped_and_open_clip_is_left_as_it_was(wide: Path, tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(wide, tmp_path / "whole"))
    whole = {name: one.float() for name, one in load_file(folder / WEIGHTS).items()}
    save_file(whole, folder / WEIGHTS)
    before = open_clip.factory.load_checkpoint
    embedder = embed.OpenClipEmbedder("whole", folder, "cpu")
    assert str(folder / WEIGHTS) in Path("/proc/self/maps").read_text("utf-8")
    assert open_clip.factory.load_checkpoint is before
    assert embedder.embed_texts(["a"]).shape[0] == 1


# ---------------------------------------------------------------- int8, and the defaults' shapes


def needs_int8() -> None:
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("no int8 on this processor")


def test_int8_turns_a_vector_by_less_than_one_percent(wide: Path) -> None:
    needs_int8()
    images = pictures(8, 64)
    embedder = embed.OpenClipEmbedder("wide", wide, "cpu")
    vectors = embedder.embed_images(images)
    assert "Int8Linear" in repr(embedder._visual)
    assert "MultiheadAttention" not in repr(embedder._visual)
    cosines = (vectors * plain_open_clip(wide, images)).sum(axis=1)
    assert cosines.min() >= 0.99


def test_siglip2_is_embedded_and_its_text_tower_sees_its_padding(siglip2: Path) -> None:
    embedder = embed.OpenClipEmbedder("siglip2", siglip2, "cpu")
    assert (embedder.spec.image_width, embedder.spec.resize_mode) == (256, "squash")
    images = pictures(2, 256)
    assert cosines_to_float32(embedder, images).min() >= 0.99
    tokens = embedder._tokenize(["a red car"])
    with embed._trimmed(tokens, embedder._network.text) as needed:
        assert needed.shape[1] == 64
    assert embedder.embed_texts(["a red car"]).shape == (1, 768)


def test_pe_core_is_embedded_and_its_padding_is_dropped(pe_core: Path) -> None:
    embedder = embed.OpenClipEmbedder("pe-core", pe_core, "cpu")
    assert cosines_to_float32(embedder, pictures(2, 384)).min() >= 0.99
    with embed._trimmed(embedder._tokenize(["a car"]), embedder._network.text) as needed:
        assert needed.shape[1] == 4


def test_a_tower_that_int8_would_spoil_stays_as_it_is(
    wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "_INT8_MIN_COSINE", 1.01)
    embedder = embed.OpenClipEmbedder("wide", wide, "cpu")
    images = pictures(2, 64)
    np.testing.assert_allclose(
        embedder.embed_images(images), plain_open_clip(wide, images), atol=1e-5
    )


# ---------------------------------------------------------------- what cannot be loaded


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such folder; for a model of a hub: hf-hub:"):
        find_folder(str(tmp_path / "none"))


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_folder_without_a_file_says_which(tiny: Path, tmp_path: Path, missing: str) -> None:
    for name in {CONFIG, WEIGHTS} - {missing}:
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    with pytest.raises(ModelError, match=f"has no {missing}; an open_clip folder has"):
        find_folder(str(tmp_path))


def test_damaged_weights_are_an_error_in_one_line(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_bytes((tiny / CONFIG).read_bytes())
    (tmp_path / WEIGHTS).write_bytes((tiny / WEIGHTS).read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"cannot be loaded as an open_clip model: [^\n]*$"):
        load_embedder(str(tmp_path), "cpu")


def test_weights_of_another_shape_are_an_error(tiny: Path, tmp_path: Path) -> None:
    other = {**TINY_CLIP, "embed_dim": 16}
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": other, "preprocess_cfg": {}}))
    (tmp_path / WEIGHTS).write_bytes((tiny / WEIGHTS).read_bytes())
    with pytest.raises(ModelError, match="cannot be loaded as an open_clip model"):
        load_embedder(str(tmp_path), "cpu")


def test_a_configuration_of_something_else_is_an_error(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text('{"architectures": ["Qwen2VL"]}')
    (tmp_path / WEIGHTS).write_bytes((tiny / WEIGHTS).read_bytes())
    with pytest.raises(ModelError, match="is not the configuration of an open_clip model"):
        load_embedder(str(tmp_path), "cpu")


def test_a_misspelt_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the nearest is ViT-B-32-SigLIP2-256"):
        repository("ViT-B-32-SigLip2-256")


def test_a_model_with_several_weights_wants_one_named() -> None:
    with pytest.raises(ModelError, match=r"as ViT-B-32:PRETRAINED; known are openai, "):
        repository("ViT-B-32")


def test_cuda_where_there_is_none_is_an_error(tiny: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA card")
    with pytest.raises(ModelError, match="device cuda: torch sees no CUDA card"):
        load_embedder(str(tiny), "cuda")


# ---------------------------------------------------------------- hubs


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("ViT-B-32-SigLIP2-256", "timm/ViT-B-32-SigLIP2-256"),
        ("PE-Core-L-14-336", "timm/PE-Core-L-14-336"),
        ("ViT-SO400M-14-SigLIP2-378", "timm/ViT-SO400M-14-SigLIP2-378"),
        ("ViT-B-32:laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("hf-hub:me/mine", "me/mine"),
    ],
)
def test_a_name_stands_for_a_repository(model: str, expected: str) -> None:
    assert repository(model) == expected


@contextmanager
def recorded_hub(files: dict[str, bytes], status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A hub with one repository, on loopback; yields its address and what is asked of it."""
    asked: list[str] = []
    commit = "c" * 40

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if "timm" in path:  # the client also asks after other things
                asked.append(f"{self.command} {path}")
            name = path.rpartition(f"/resolve/{commit}/")[2]
            if status != 200:
                self.answer(status, b"{}")
            elif "/tree/" in path:
                entries = [
                    {"type": "file", "path": file, "size": len(data), "oid": "0" * 40}
                    for file, data in files.items()
                ]
                self.answer(200, json.dumps(entries).encode())
            elif path.startswith("/api/models/"):
                listing = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
                about = {"id": "timm/x", "sha": commit, "siblings": listing, "private": False}
                self.answer(200, json.dumps(about).encode())
            elif name in files:
                self.answer(200, files[name])
            else:
                self.answer(404, b"{}")

        do_HEAD = do_GET

        def answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{len(body):040x}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fetch(model: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`find_folder` in a process of its own, as hub settings are read when the client is loaded."""
    code = (
        "import sys; from vidqa.embed import find_folder; from vidqa.errors import ModelError\n"
        "try: print(find_folder(sys.argv[1], sys.argv[2]))\n"
        "except ModelError as error: sys.exit(f'ModelError: {error}')"
    )
    hub = environment.pop("VIDQA_HUB", "huggingface")
    kept = {key: value for key, value in os.environ.items() if not key.endswith("_OFFLINE")}
    return subprocess.run(
        [sys.executable, "-c", code, model, hub],
        env={
            **kept,
            "HF_HOME": str(cache),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_hub_is_asked_for_the_wanted_files_of_the_main_revision_and_once(
    tmp_path: Path,
) -> None:
    files = {
        CONFIG: b"{}",
        WEIGHTS: b"weights",
        "tokenizer.json": b"{}",
        "open_clip_pytorch_model.bin": b"a pickle",
        "README.md": b"read me",
    }
    model = "hf-hub:timm/ViT-B-32-SigLIP2-256"
    with recorded_hub(files) as (address, asked):
        first = fetch(model, tmp_path, HF_ENDPOINT=address)
        assert first.returncode == 0, first.stderr
        assert asked[0] == "GET /api/models/timm/ViT-B-32-SigLIP2-256/revision/main"
        fetched = {line.rpartition("/")[2] for line in asked if "/resolve/" in line}
        assert fetched == {CONFIG, WEIGHTS, "tokenizer.json"}
        assert fetched <= set(HUB_FILES)
        asked.clear()
        second = fetch(model, tmp_path, HF_ENDPOINT=address)
        assert second.stdout == first.stdout
        assert asked == []
    assert (Path(first.stdout.strip()) / WEIGHTS).read_bytes() == b"weights"


@pytest.mark.parametrize("status", [404, 503])
def test_a_hub_that_refuses_is_an_error_with_the_ways_out(tmp_path: Path, status: int) -> None:
    with recorded_hub({}, status) as (address, _):
        done = fetch("hf-hub:timm/x", tmp_path, HF_ENDPOINT=address)
    assert done.returncode == 1
    for part in ("ModelError: no weights for embedder hf-hub:timm/x", str(tmp_path), address,
                 "--embedder FOLDER", "VIDQA_HUB=modelscope", "HF_ENDPOINT="):  # fmt: skip
        assert part in done.stderr


def test_no_hub_in_reach_is_an_error_with_the_ways_out(tmp_path: Path) -> None:
    done = fetch("hf-hub:timm/x", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 did not give it" in done.stderr
    assert "--embedder FOLDER" in done.stderr


def test_a_hub_that_is_switched_off_is_not_asked(tmp_path: Path) -> None:
    with recorded_hub({}) as (address, asked):
        done = fetch("hf-hub:timm/x", tmp_path, HF_ENDPOINT=address, VIDQA_HUB="none")
    assert "the hub is not asked (hub: none)" in done.stderr
    assert asked == []


def test_modelscope_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    done = fetch("hf-hub:timm/x", tmp_path, VIDQA_HUB="modelscope")
    assert "uv pip install modelscope" in done.stderr
