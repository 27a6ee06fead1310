# SPDX-License-Identifier: Apache-2.0
"""The Backend protocol: how the node, the CLI and the evaluation use a model.

A backend answers one query at a time, or one batch, on the thread that iterates over its stream.
This module imports neither torch nor transformers, so that a node joins the graph before it loads
a model.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from lisa_ros.error_text import short_repr
from lisa_ros.errors import LisaError, QueryError
from lisa_ros.files.text import is_encodable
from lisa_ros.model.cache_use import CacheUse
from lisa_ros.perception.health import ModelHealth
from lisa_ros.perception.process_memory import GpuMemory
from lisa_ros.results import Dialogue, Done, Event, Region, Status, unanswered

STOP_GRACE = 0.5  # how long a backend may take to stop after `answer_timeout` [s]


class ScoreKind(enum.Enum):
    """What the scores of a backend's masks mean."""

    CALIBRATED = enum.auto()  # probability that the mask is right
    UNCALIBRATED = enum.auto()  # ranks masks, but is not a probability


class AnswerStyle(enum.Enum):
    """What an answer consists of.

    A backend asks for it in the words that its model was trained with. A model without such words
    for a style answers as with AUTO.
    """

    AUTO = 'auto'  # nothing is added to the query
    SEMANTIC = 'semantic'  # one mask of all objects that are meant
    INSTANCES = 'instances'  # a mask of each object
    EXPLAIN = 'explain'  # a mask and the reason
    TEXT = 'text'  # words without a mask


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do besides making a mask."""

    explains: bool = False  # gives a reason if `Query.explain` is set
    denies: bool = False  # says as text that an object is absent
    instances: bool = False  # makes a mask of each object, not one of several objects
    dialogue: bool = False  # understands earlier turns
    yes_no: bool = False  # answers `Query.yes_no`
    scores: ScoreKind = ScoreKind.UNCALIBRATED
    batches: bool = False  # answers several queries at once, see `AnswersBatches`


@dataclass(frozen=True)
class Query:
    """One question about one image."""

    text: str
    dialogue: Dialogue = field(default_factory=Dialogue)  # earlier turns about the same image
    explain: bool = False  # ask for a reason, too; AnswerStyle.EXPLAIN for this query
    region: Region | None = None  # segment only this part [px]; None: the whole image
    # answer with yes or no, without masks; the result has `yes_probability`. Only for backends
    # whose capabilities say `yes_no`: `roi.stream_in_region` rejects it for others
    yes_no: bool = False


def check_query(text: str) -> None:
    """Check a query as the user typed it.

    Raises:
        QueryError: it is empty, or has half a character.
    """
    if not text.strip():
        raise QueryError('the query is empty: say what to look for, as in "segment the red mug"')
    if not is_encodable(text):
        raise QueryError(
            f'the query {short_repr(text)} has half a character (a lone surrogate); expected text '
            'that can be written as UTF-8'
        )


@dataclass(frozen=True)
class InferenceOptions:
    """How a query is answered."""

    max_new_tokens: int = 512  # longest answer [tokens], at least 1
    answer_style: AnswerStyle = AnswerStyle.AUTO  # of queries without `Query.explain`
    confidence_threshold: float | None = None  # minimum score of a mask, 0..1; None: model's own
    refine: bool | None = None  # refine mask boundaries with image edges; None: the model's own
    # prompt SAM with points, too, as READ does: the model computes them; None: the model's own
    similarity_points: bool | None = None
    # add the boxes of earlier masks to the prompt as text; no released model is trained on them
    dialogue_boxes: bool = False
    # True: "[SEG]" typed in a query is the token and makes a mask, as in the original; False: text
    typed_specials: bool = False
    answer_timeout: float | None = None  # stop the answer after this time [s]; None: no limit
    # ask a vision-language model whether what it pointed at is right, before masks are ready
    verify: bool = False


@dataclass(frozen=True)
class LoadOptions:
    """Where and how the weights of a model are loaded; None: as the backend chooses."""

    device: str | None = None  # cpu, cuda, cuda:1
    precision: str | None = None  # fp32, bf16, fp16, int8, nf4
    vision_tower: str | Path | None = None  # CLIP, folder or hub id
    segmenter_model: str | Path | None = None  # SAM 2 of "vlm+sam:", folder or hub id
    # server with the vision-language model of "vlm+sam:", with OpenAI's chat completions
    vlm_url: str | None = None
    # name of the environment variable, or the file, with the key of the model's server
    api_key_env: str | None = None
    api_key_file: str | Path | None = None
    sam: str | Path | None = None  # a .pth file of segment-anything
    # conversation template, a name in prompts.TEMPLATES; of "vlm+sam:" in vlm.profiles.PROFILES
    template: str | None = None
    threads: int | None = None  # CPU threads of the model
    allow_download: bool = False  # of a CLIP that a local folder names by its hub id
    sha256: str | None = None  # of the model's folder or its only weight file, 64 hex digits
    lock: str | Path | None = None  # file with the checksums of all that is loaded
    max_input_side: int | None = None  # largest input of CLIP and SAM that a model may claim [px]
    max_model_size: float | None = None  # of the weights [GB]; None: the free memory
    cache_bytes: int | None = None  # for keys and values of earlier prompts; None: 512 MiB
    # of a model that is an address, "http://server:8000"
    server_image: str | None = None  # how images are sent: jpeg, png, raw; None: jpeg
    server_jpeg_quality: int | None = None  # 1 to 100; None: 90


class Cancellation(Protocol):
    """Tells a backend to stop; a `threading.Event` is one. Set from any thread."""

    def is_set(self) -> bool:
        """Return whether the backend must stop."""


class Backend(Protocol):
    """A loaded model. One thread at a time calls it; any thread may set `Cancellation`."""

    @property
    def device(self) -> str:
        """The device of the model, as torch names it, or the address of a server."""

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""

    def stream(
        self,
        image: np.ndarray,
        query: Query,
        options: InferenceOptions,
        cancel: Cancellation,
    ) -> Iterator[Event]:
        """Answer a query: yield Token and MaskReady as they arrive, then exactly one Done.

        The masks of the events are (H, W), and those of the result are the same, in their order.
        The result's query is `query.text`. If `cancel` is set, the result has status CANCELLED; if
        the answer takes longer than `answer_timeout`, TIMED_OUT. Both keep the masks that were
        ready.

        Args:
            image: (H, W, 3) uint8 RGB.
            query: without a region: `roi.stream_in_region` crops the image and pastes the masks.
            options: how to answer; a backend ignores unsupported options.
            cancel: checked before each token.

        Raises:
            ImageError: the image is not (H, W, 3) uint8. The call raises it, not the iteration.
            QueryError: the text is empty or too long; as above.
            ModelError: the model computed NaN or infinity. The iteration raises it.
        """

    def encode_images(self, images: Sequence[np.ndarray]) -> None:
        """Encode several (H, W, 3) uint8 RGB images at once; keep them until the next call.

        A backend without an image encoder of its own does nothing.

        Raises:
            ImageError: an image has another shape or type.
        """

    def clear_cache(self) -> None:
        """Drop the features of earlier images."""


@runtime_checkable
class SupervisedBackend(Backend, Protocol):
    """A backend that can be stopped from outside, such as a model in a process of its own.

    Any thread may use what is declared here.
    """

    @property
    def health(self) -> ModelHealth:
        """Whether the model can be asked."""

    @property
    def memory(self) -> int:
        """Resident memory of the model, without that of a GPU [bytes]; 0 if unknown."""

    @property
    def gpu_memory(self) -> GpuMemory | None:
        """Memory of the model on its GPU after the last answer; None without a GPU."""

    def interrupt(self, cause: str) -> None:
        """End the running request at once, whatever the model does; no effect without one.

        Args:
            cause: why, in words.
        """

    def close(self) -> None:
        """Free the model; no more requests."""


@runtime_checkable
class ReportsPrecision(Protocol):
    """A backend that says in which number format its weights are; any thread."""

    @property
    def precision(self) -> str:
        """fp32, bf16, fp16, int8 or nf4; empty if it is unknown."""


def precision_of(backend: Backend) -> str:
    """Return the number format of a backend's weights; empty if it does not say."""
    return backend.precision if isinstance(backend, ReportsPrecision) else ''


@runtime_checkable
class ReportsInputSide(Protocol):
    """A backend that says how large the images are that its model sees; any thread."""

    @property
    def input_side(self) -> int | None:
        """Longest side beyond which a larger image adds nothing [px]; None: no such side."""


@runtime_checkable
class ReportsNotices(Protocol):
    """A backend of which its user should know something, such as who gets the images."""

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences for the log, after the model is loaded."""


@runtime_checkable
class ReportsPeakMemory(Protocol):
    """A backend that says how much memory it has had; any thread."""

    @property
    def peak_memory(self) -> int:
        """Largest resident memory so far, without that of a GPU [bytes]; 0 if unknown."""


@runtime_checkable
class ReportsCache(Protocol):
    """A backend that keeps earlier prompts; any thread."""

    @property
    def cache_use(self) -> CacheUse | None:
        """What is kept; None: it keeps nothing."""


@dataclass(frozen=True)
class BatchRequest:
    """One query of a batch."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    query: Query
    cancel: Cancellation  # ends this answer only

    def failed(self, error: LisaError) -> Done:
        """Return the end of an answer that fails."""
        result = unanswered(self.query.text, Status.FAILED, str(error), self.image.shape[:2])
        return Done(result)


@runtime_checkable
class AnswersBatches(Protocol):
    """A backend that answers several queries at once, which a GPU does faster.

    It may have the method and not be able to: `Capabilities.batches` tells.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""

    def stream_batch(
        self, requests: Sequence[BatchRequest], options: InferenceOptions
    ) -> Iterator[tuple[int, Event]]:
        """Yield the events of all answers, each with the number of its request.

        The events of one request are those of `Backend.stream`; those of several requests may
        alternate. A request that is not valid, or for which the model computes NaN or infinity,
        ends as FAILED, and the others go on. A request that the backend cannot answer together
        with others has no Done: the caller asks it alone.

        Args:
            requests: images of any size, and queries without a region.
            options: for all of them; `answer_timeout` limits the time of the whole batch.

        Raises:
            torch.OutOfMemoryError, DeviceMemoryError: the memory is not enough for the batch;
                requests without Done are to be asked in halves.
            Exception: the iteration raises what no single request has caused, such as a
                WorkerError; requests without Done are to be asked alone.
        """


class BackendLoader(Protocol):
    """Loads the models of a scheme, such as "vlm+sam:"; see `registry.register_backend`."""

    def __call__(self, model: str, options: LoadOptions) -> Backend:
        """Load a model.

        Args:
            model: the name, without the scheme.
            options: device, precision and companions; without "" and "auto".

        Raises:
            CheckpointError: the files are not a model of this kind, or are incomplete.
            SettingsError: the device or precision is not available.
        """
