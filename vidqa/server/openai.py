"""The rest of OpenAI's interface that makes sense here: models and embeddings."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request

from vidqa.server.errors import ApiError
from vidqa.server.gateway import Gateway, Model, Shelf
from vidqa.server.schemas import EmbeddingInput, EmbeddingRequest
from vidqa.server.state import errors, gateway_of, pictures_of
from vidqa.types import QuestionImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Bounds what embedding holds in memory, and how long a search that somebody types waits for it.
TEXTS_AT_ONCE = 64

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List what may be asked")
async def models(request: Request) -> dict[str, Any]:
    """One name for each library and answerer."""
    gateway = gateway_of(request)
    return {"object": "list", "data": [model_shape(gateway, one) for one in gateway.models()]}


@router.get("/v1/models/{name:path}", summary="One of them", responses=errors(404))
async def model(name: str, request: Request) -> dict[str, Any]:
    gateway = gateway_of(request)
    return model_shape(gateway, gateway.model(name))


def model_shape(gateway: Gateway, model: Model) -> dict[str, Any]:
    settings = gateway.settings
    return {
        "id": model.name,
        "object": "model",
        "created": gateway.started,
        "owned_by": "vidqa",
        # Of an endpoint that is not ours nobody told us.
        "context_length": None if settings.base_url else settings.max_model_len,
        "library": model.library,
        "adapter": model.adapter,
    }


@router.post(
    "/v1/embeddings", summary="Embed texts and pictures", responses=errors(400, 404, 413, 422, 429)
)
async def embeddings(body: EmbeddingRequest, request: Request) -> dict[str, Any]:
    """Vectors of the library's embedder: a text and a picture of it lie close."""
    gateway = gateway_of(request)
    shelf = gateway.shelf(gateway.model(body.model).library)
    dimension = shelf.embedder.spec.dimension
    if body.dimensions not in (None, dimension):
        raise ApiError(
            400,
            f"dimensions is {body.dimensions}; {shelf.name}'s embedder has {dimension}",
            param="dimensions",
        )
    inputs = body.inputs()
    urls = [one.image for one in inputs if one.image is not None]
    gateway.check_images(urls)
    pictures = pictures_of(request)
    async with gateway.searches.turn():
        images = [await pictures.of(url, shelf.embedder.spec) for url in urls]
        vectors = await gateway.run(_embedded, shelf, inputs, images)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": n, "embedding": _encoded(one, body.encoding_format)}
            for n, one in enumerate(vectors)
        ],
        "model": body.model,
        # The embedder's tokens are nobody's money, and are not counted.
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }


def _embedded(
    shelf: Shelf, inputs: Sequence[EmbeddingInput], images: Sequence[QuestionImage]
) -> NDArray[np.float32]:
    """float32 (N, D), in the order of the inputs."""
    vectors = np.empty((len(inputs), shelf.embedder.spec.dimension), np.float32)
    texts = [n for n, one in enumerate(inputs) if one.text is not None]
    pictured = [n for n, one in enumerate(inputs) if one.image is not None]
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = texts[start : start + TEXTS_AT_ONCE]
        vectors[some] = shelf.embedder.embed_texts([inputs[n].text or "" for n in some])
    if pictured:
        vectors[pictured] = shelf.embedder.embed_images(np.stack([one.pixels for one in images]))
    return vectors


def _encoded(vector: NDArray[np.float32], form: str) -> list[float] | str:
    """As numbers, or as the base64 of little-endian float32, which OpenAI's client asks for."""
    if form == "float":
        return [float(one) for one in vector]
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
