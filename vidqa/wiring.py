"""Settings become the objects that the verbs take: library and embedder, options, endpoint.

This is where the flat list of settings meets the modules, none of which knows `config`. The
command line and the demo use it; a program that builds these objects itself need not.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.config import Settings
from vidqa.errors import LibraryError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidqa.ask import AskOptions
    from vidqa.boxes import Sight
    from vidqa.embed import Embedder
    from vidqa.engine import EngineOptions
    from vidqa.ingest import IngestOptions
    from vidqa.library import Library
    from vidqa.types import EmbedderSpec, Moment, Picture, QuestionImage, ShownMoment
    from vidqa.vlm import VlmClient

OnStage = Callable[[str], None]


def open_library(
    settings: Settings, *, create: bool = False, on_demand: bool = False, follow: bool = False
) -> tuple[Library, Embedder]:
    """The library with the embedder it was made with, unless another was asked for.

    With `follow` it reads from memory and follows every commit, for a process that lives long.
    With `on_demand` the embedder of a library that exists is loaded when it is first used.
    Raises LibraryError when there is none, before a model is loaded; EmbedderMismatch when the
    one asked for is not the library's; ModelError when its weights are missing.
    """
    from vidqa.embed import load_embedder
    from vidqa.frames import pictures_at
    from vidqa.library import Library

    def load(model: str) -> tuple[Library, Embedder]:
        embedder = load_embedder(model, settings.device, settings.hub)
        opened = Library.open(
            settings.index,
            embedder.spec,
            create=create,
            pictures_at=pictures_at,
            follow=follow,
        )
        return opened, embedder

    try:
        library = Library.open(settings.index, pictures_at=pictures_at, follow=follow)
    except LibraryError:
        if not create:
            raise
        return load(settings.embedder)
    model = settings.embedder if "embedder" in settings.given else library.spec.model
    if on_demand and model == library.spec.model:
        return library, OnDemand(library.spec, lambda: load(model)[1])
    return load(model)


class OnDemand:
    """An embedder that is loaded when it is first used: loading takes seconds, and taking in
    folders where nothing has changed never uses it.

    It is loaded once, however many threads use it first.
    """

    def __init__(self, spec: EmbedderSpec, load: Callable[[], Embedder]) -> None:
        self.spec = spec
        self._load = load
        self._turn = threading.Lock()
        self._embedder: Embedder | None = None

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._loaded().embed_images(images)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._loaded().embed_texts(texts)

    def _loaded(self) -> Embedder:
        with self._turn:
            if self._embedder is None:
                self._embedder = self._load()
            return self._embedder


def ingest_options(settings: Settings) -> IngestOptions:
    from vidqa.ingest import IngestOptions
    from vidqa.scenes import SceneOptions

    return IngestOptions(
        sample_fps=settings.sample_fps,
        scenes=SceneOptions(
            min_scene_seconds=settings.min_scene_seconds,
            max_scene_seconds=settings.max_scene_seconds,
            adaptive_threshold=settings.adaptive_threshold,
        ),
        keep_frames=settings.keep_frames,
        workers=settings.workers,
    )


def ask_options(settings: Settings, **chosen: Any) -> AskOptions:
    """`chosen` are the fields of `AskOptions` that are no settings, like `filters`."""
    from vidqa.ask import AskOptions
    from vidqa.vlm import Sampling

    return AskOptions(
        k=settings.k,
        max_frames=settings.max_frames,
        frames_per_moment=settings.frames_per_moment,
        max_pixels=settings.max_pixels,
        sampling=Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature),
        **chosen,
    )


def engine_options(settings: Settings, weights: Path) -> EngineOptions:
    """What our engine is to serve: a hub's model under its name there, a folder under its own."""
    from vidqa.engine import EngineOptions

    return EngineOptions(
        model=str(weights),
        name="" if Path(settings.model).is_dir() else settings.model,
        dtype=settings.dtype,
        max_model_len=_context(settings, weights),
        kvcache_gib=settings.kvcache_gib,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        idle_minutes=settings.engine_idle_minutes,
    )


def _context(settings: Settings, weights: Path) -> int:
    """Tokens that the engine takes at once: what the model can, unless more were asked for."""
    from vidqa.weights import longest_context

    most = longest_context(weights)
    if most is None or "max_model_len" in settings.given:
        return settings.max_model_len
    return min(settings.max_model_len, most)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the model is asked; `model` is None where the endpoint's only one is meant.

    `adapters` are what each adapter is called there.
    """

    base_url: str
    api_key: str | None = field(repr=False)
    model: str | None
    adapters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChosenAdapter:
    """An adapter that is to answer: its name, its folder, and how it wants to be shown videos.

    There is no folder where an endpoint of the user's has the adapter under that name.
    """

    name: str
    folder: Path | None
    look: Mapping[str, Any] = field(default_factory=dict)


def choose_adapter(settings: Settings, given: str) -> ChosenAdapter:
    """What `--adapter` means: a name in the folder of adapters, a folder, or NAME=FOLDER.

    Raises UsageError, and ModelError where a file of it is damaged.
    """
    from vidqa.adapters import check_name, find, read

    name, equals, place = given.partition("=")
    if not (place if equals else given):  # "" would be the folder that we are in
        raise UsageError(f"--adapter {given!r}: a name, a folder, or NAME=FOLDER is wanted")
    try:
        folder = find(place if equals else given, settings.adapters)
    except UsageError as error:
        if settings.base_url and not equals and "/" not in given:
            return ChosenAdapter(given, None)
        raise UsageError(f"--adapter {f'{name}=' if equals else ''}{error}") from error
    card = read(folder)
    return ChosenAdapter(check_name(name if equals else folder.absolute().name), folder, card.look)


LOOK_SETTINGS = ("max_frames", "frames_per_moment", "max_pixels")


def with_look(settings: Settings, look: Mapping[str, Any]) -> Settings:
    """The settings as an adapter wants them, where the user has chosen nothing else.

    Raises ConfigError for a look that no setting allows.
    """
    wanted = {
        name: look[name]
        for name in LOOK_SETTINGS
        if look.get(name) is not None and name not in settings.given
    }
    return replace(settings, **wanted) if wanted else settings


def as_trained(settings: Settings, adapter: ChosenAdapter | None = None) -> Settings:
    """The settings as the adapter wants them, or the model itself where it was tuned here.

    Raises ConfigError for a look that no setting allows, ModelError for a damaged `vidqa.json`.
    """
    from vidqa.model_card import look_of

    look = {} if settings.base_url else look_of(settings.model)
    return with_look(settings, {**look, **(adapter.look if adapter else {})})


def endpoint(
    settings: Settings,
    on_stage: OnStage = lambda stage: None,
    adapters: Sequence[ChosenAdapter] = (),
) -> Endpoint:
    """The endpoint that answers: the user's, or our engine, started if need be.

    `on_stage` hears what is being waited for. Of the user's endpoint the only model is taken
    unless one was asked for. `adapters` are loaded into our engine, which is started anew when it
    was started without any; they are shown to be applied. Raises ModelError where one cannot be
    served, or belongs to another base.
    """
    if settings.base_url:
        model = settings.model if "model" in settings.given else None
        names = {one.name: one.name for one in adapters}
        return Endpoint(settings.base_url, settings.api_key, model, names)
    from vidqa.adapter_fit import check_base, servable
    from vidqa.engine import check_vllm, ensure_engine
    from vidqa.engine_adapters import EngineGone, load
    from vidqa.weights import find_weights

    check_vllm()  # before gigabytes of weights are fetched for nothing
    wanted = {one.name: servable(one.folder) for one in adapters if one.folder}
    weights = find_weights(settings.model, settings.hub, on_stage)
    options = engine_options(settings, weights)
    for adapter in wanted.values():
        check_base(adapter, weights, settings.model)
        options = options.allowing(adapter.rank, tower_lora=adapter.vision)
    for is_last in (False, True):
        handle = ensure_engine(options, on_stage=on_stage)
        try:
            models = {
                name: load(handle, adapter, name, on_stage).model
                for name, adapter in wanted.items()
            }
            break
        except EngineGone:  # another command has put its own in its place
            if is_last:
                raise
    return Endpoint(handle.base_url, handle.api_key, handle.model, models)


def connect(
    settings: Settings,
    on_stage: OnStage = lambda stage: None,
    adapter: ChosenAdapter | None = None,
) -> VlmClient:
    """A client of the endpoint that answers, and of the adapter there; see `endpoint`."""
    from vidqa.vlm import VlmClient

    found = endpoint(settings, on_stage, [adapter] if adapter else [])
    model = found.adapters[adapter.name] if adapter else found.model
    return VlmClient(found.base_url, found.api_key, model)


@contextmanager
def connect_when_asked(
    settings: Settings,
    on_stage: OnStage = lambda stage: None,
    adapter: ChosenAdapter | None = None,
) -> Iterator[Callable[[], VlmClient]]:
    """A function that connects when it is first called; the connection ends with the block."""
    with ExitStack() as opened:
        yield functools.cache(lambda: opened.enter_context(connect(settings, on_stage, adapter)))


def sight(settings: Settings, family: str | None = None) -> Sight:
    """How the model that answers sees pictures and writes boxes; see `boxes`.

    Our engine's model tells it in its configuration. Of the user's endpoint only names are known:
    that of the model, asked of the endpoint where none was given. `family` overrules both. Raises
    UsageError when nothing tells the family.
    """
    from vidqa.boxes import FAMILIES, Sight, family_in_name

    chosen = next((one for one in FAMILIES if one == family), None)
    if family is not None and chosen is None:
        raise UsageError(f"--box-format {family}: one of {', '.join(FAMILIES)} is allowed")
    if not settings.base_url:
        from vidqa.engine import check_vllm
        from vidqa.weights import find_weights
        from vidqa.weights import sight as of_folder

        check_vllm()
        return of_folder(find_weights(settings.model, settings.hub), chosen)
    if chosen is None:
        with connect(settings) as client:
            name = client.model
        chosen = family_in_name(name)
        if chosen is None:
            raise UsageError(
                f"how {name} writes boxes cannot be told from its name; "
                f"say it with --box-format: {', '.join(FAMILIES)}"
            )
    return Sight(chosen)


def question_images(
    files: Sequence[Path], settings: Settings, spec: EmbedderSpec
) -> list[QuestionImage]:
    """Pictures of the user's that belong to a query. Raises UsageError, with the file's name."""
    from vidqa.stills import question_image

    images = []
    for file in files:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UsageError(f"--image {file}: {error.strerror}") from error
        try:
            limit = int(settings.max_image_megapixels * 1e6)
            images.append(question_image(data, spec, max_pixels=limit))
        except UsageError as error:
            raise UsageError(f"--image {file}: {error}") from error
    return images


def with_pictures(
    moments: Sequence[Moment], library: Library, frames_per_moment: int
) -> list[ShownMoment]:
    """Moments as a contact sheet shows them, numbered from 1, with so many frames each at most."""
    from vidqa.select import spread
    from vidqa.types import ShownMoment

    def pictures(moment: Moment) -> tuple[Picture, ...]:
        times = spread(moment.frame_seconds, frames_per_moment)
        return tuple(library.pictures(moment.video_id, times))

    return [ShownMoment(n, moment, pictures(moment)) for n, moment in enumerate(moments, 1)]
