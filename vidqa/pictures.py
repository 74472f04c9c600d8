"""Small pictures, straight from decoded YUV frames: for the detectors, the embedder and the shelf.

    views = Views(width, height, image_width, image_height, resize_mode)
    views.detector(picture)  views.embedder(picture)  views.jpeg(picture)
    jpeg_size(jpeg)                                     (420, 236), from its header

swscale scales and converts in one step, so a full-resolution RGB picture is never made. Pictures
come out upright. Which frame gets which picture is not decided here.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from vidqa.containers import displayed_size
from vidqa.types import ResizeMode

if TYPE_CHECKING:
    import numpy as np
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

# The box of a kept picture: 15 x 13 patches of 28 pixels, near the upper end of what others
# train Qwen2-VL on for video (50 k to 100 k pixels a frame). A tall picture gets the box turned.
PICTURE_LONG_SIDE = 420
PICTURE_SHORT_SIDE = 364
JPEG_QUALITY = 85

# PySceneDetect shrinks frames to this width before it compares them (`DEFAULT_MIN_WIDTH`).
DETECTOR_LONG_SIDE = 256

_AV_COLORSPACE_UNSPECIFIED = 2
_HD_LINES = 720


def fine() -> int:
    """swscale flags for pictures that a model sees.

    Closest to PIL's bicubic, which open_clip models are used with: 45 to 46 dB, where plain
    bicubic reaches 39 to 45 and area averaging 38 to 44 (272- to 1080-line videos, to 224 x 224).
    """
    from av.video.reformatter import Interpolation

    flags = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    return int(flags)


class Scaler:
    """One size and pixel format out of frames of any size, by swscale, upright."""

    def __init__(self, width: int, height: int, pixels: str, flags: int) -> None:
        from av.video.reformatter import VideoReformatter

        self._width, self._height, self._pixels, self._flags = width, height, pixels, flags
        self._reformatter = VideoReformatter()

    def __call__(self, picture: VideoFrame) -> NDArray[np.uint8]:
        """uint8 (height, width, 3)."""
        import numpy as np

        turned = picture.rotation % 180 != 0
        width, height = (self._height, self._width) if turned else (self._width, self._height)
        small = self._reformatter.reformat(
            picture,
            width,
            height,
            self._pixels,
            src_colorspace=_colorspace(picture),
            interpolation=self._flags,
            threads=1,
        )
        # FFmpeg counts the display rotation counter-clockwise, as numpy does.
        upright = np.rot90(small.to_ndarray(), picture.rotation // 90 % 4)
        return np.ascontiguousarray(upright, dtype=np.uint8)


def _colorspace(picture: VideoFrame) -> int | None:
    """BT.709 for HD that names no matrix, as players take it; else what the frame says."""
    from av.video.reformatter import Colorspace

    if picture.colorspace == _AV_COLORSPACE_UNSPECIFIED and picture.height >= _HD_LINES:
        return Colorspace.ITU709
    return None


class Views:
    """The three small pictures that ingesting makes of a frame.

    `width` and `height` are the video's displayed size in pixels; the embedder's picture is
    `image_width` x `image_height`, by `resize_mode`: "squash" stretches the frame to it,
    "shortest" fits the shorter side and crops the centre.
    """

    def __init__(
        self, width: int, height: int, image_width: int, image_height: int, resize_mode: ResizeMode
    ) -> None:
        self._image_width, self._image_height = image_width, image_height
        self._rgb = Scaler(
            *_cover(width, height, image_width, image_height, resize_mode), "rgb24", fine()
        )
        self._kept = Scaler(*picture_size(width, height), "bgr24", fine())
        self._detector: Scaler | None = None

    def detector(self, picture: VideoFrame) -> NDArray[np.uint8]:
        """BGR at the size and with the sampling that PySceneDetect's own reader gives.

        Its cv2.resize averages four pixels of the full-size frame and passes over the rest. At
        these factors nearest-pixel sampling is the closest that swscale has, and the cheapest:
        a quarter of the time of area averaging.
        """
        from av.video.reformatter import Interpolation

        if self._detector is None:
            size = detector_size(*displayed_size(picture, None))
            self._detector = Scaler(*size, "bgr24", Interpolation.POINT)
        return self._detector(picture)

    def embedder(self, picture: VideoFrame) -> NDArray[np.uint8]:
        """RGB uint8 (image_height, image_width, 3)."""
        import numpy as np

        image = self._rgb(picture)
        top = (image.shape[0] - self._image_height) // 2
        left = (image.shape[1] - self._image_width) // 2
        crop = image[top : top + self._image_height, left : left + self._image_width]
        return np.ascontiguousarray(crop)

    def jpeg(self, picture: VideoFrame) -> bytes:
        """The kept picture: JPEG in the displayed aspect ratio, see `picture_size`."""
        return encode_jpeg(self._kept(picture))


def picture_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) of the kept picture of a video of that displayed size; never enlarged."""
    scale = min(
        1.0,
        PICTURE_LONG_SIDE / max(width, height),
        PICTURE_SHORT_SIDE / min(width, height),
    )
    return max(1, round(width * scale)), max(1, round(height * scale))


def jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """(width, height) of a JPEG, from its header."""
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as image:
        return image.size


def detector_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) that PySceneDetect's automatic downscale gives a decoded frame."""
    factor = max(1.0, max(width, height) / DETECTOR_LONG_SIDE)
    return max(1, round(width / factor)), max(1, round(height / factor))


def _cover(
    width: int, height: int, image_width: int, image_height: int, mode: ResizeMode
) -> tuple[int, int]:
    if mode == "squash":
        return image_width, image_height
    scale = max(image_width / width, image_height / height)
    return max(image_width, round(width * scale)), max(image_height, round(height * scale))


def encode_jpeg(bgr: NDArray[np.uint8]) -> bytes:
    import cv2

    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return encoded.tobytes()
