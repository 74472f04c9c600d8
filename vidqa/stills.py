"""An image from a client: read with suspicion, then seen as a frame of a video would be.

    question_image(data, spec, max_pixels=25_000_000)  all of it
    image = read_image(data, max_pixels=25_000_000)    RGB, upright
    for_embedder(image, spec)                          uint8 (H, W, 3), as the embedder sees frames
    for_model(image)                                   JPEG, as the answering model is shown frames

Scaling is that of `pictures`, so a frame of a video given as an image finds itself.
"""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TYPE_CHECKING

from vidqa.errors import UsageError
from vidqa.pictures import Scaler, Views, encode_jpeg, fine, picture_size
from vidqa.types import EmbedderSpec, QuestionImage

if TYPE_CHECKING:
    import numpy as np
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray
    from PIL.Image import Image

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
# A longer strip would be scaled to a monstrous size before its centre is cut out.
MAX_ASPECT = 50


def question_image(data: bytes, spec: EmbedderSpec, *, max_pixels: int) -> QuestionImage:
    """A picture that belongs to a query, as search and the model take it; see `read_image`."""
    image = read_image(data, max_pixels=max_pixels)
    return QuestionImage(for_embedder(image, spec), for_model(image))


def read_image(data: bytes, *, max_pixels: int) -> Image:
    """The first picture of a JPEG, PNG, WebP or GIF: RGB, upright, on white where transparent.

    The size is checked before anything is decoded. Raises UsageError, in one line, for other
    formats, damage, sides longer than 1 to 50 and more than `max_pixels` pixels.
    """
    from PIL import ImageOps

    image = _opened(data, max_pixels)
    check_size(image.width, image.height, max_pixels)
    try:
        image.load()
        # A senseless note on how the camera was held is no reason to refuse the picture.
        with suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        return _in_rgb(image)
    # Pillow's parsers meet damage with almost any exception.
    except Exception as error:
        raise UsageError(
            f"the {image.format} image of {len(data):,} bytes is truncated or damaged; "
            "send it again"
        ) from error


def _opened(data: bytes, max_pixels: int) -> Image:
    """Its header is read, no pixel decoded."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(
            f"the image is far larger than the {max_pixels:,} pixels that are allowed; "
            "send a smaller one"
        ) from error
    except Exception as error:
        raise UsageError(
            f"these {len(data):,} bytes are no JPEG, PNG, WebP or GIF image; send one of these"
        ) from error


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises UsageError for a picture that `read_image` refuses by its size."""
    if width * height > max_pixels:
        raise UsageError(
            f"the image is {width} x {height} pixels; at most {max_pixels:,} pixels are allowed: "
            "send a smaller one"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UsageError(
            f"the image is {width} x {height} pixels; its longer side may be {MAX_ASPECT} times "
            "the shorter: send a part of it"
        )


def _in_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode.startswith("I"):
        import numpy as np

        # 16 bits a pixel, which Pillow would clip at 255.
        grey = np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def for_embedder(image: Image, spec: EmbedderSpec) -> NDArray[np.uint8]:
    """RGB uint8 (image_height, image_width, 3) by the embedder's resize mode."""
    views = Views(image.width, image.height, spec.image_width, spec.image_height, spec.resize_mode)
    return views.embedder(_frame(image))


def for_model(image: Image) -> bytes:
    """A JPEG of the size that kept pictures of videos have, see `picture_size`."""
    scaler = Scaler(*picture_size(image.width, image.height), "bgr24", fine())
    return encode_jpeg(scaler(_frame(image)))


def _frame(image: Image) -> VideoFrame:
    import av
    import numpy as np

    return av.VideoFrame.from_ndarray(np.asarray(image), "rgb24")
