# SPDX-License-Identifier: Apache-2.0
"""The Backend protocol: what the node, the CLI and the evaluation know of a model.

A backend answers one request at a time, on whatever thread calls `stream`. This module imports
neither torch nor transformers, so that a node can be in the graph before a model is loaded.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lisa_ros.perception.roi import Region
from lisa_ros.results import Dialogue, Event


class ScoreKind(enum.Enum):
    """What the scores of a backend's masks are."""

    CALIBRATED = enum.auto()  # probability that the mask is right
    UNCALIBRATED = enum.auto()  # higher is surer, nothing more


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do besides making a mask."""

    explains: bool = False  # gives a reason where `Query.explain` is set
    denies: bool = False  # says in words that an object is absent
    instances: bool = False  # makes one mask for each object
    dialogue: bool = False  # understands earlier turns
    scores: ScoreKind = ScoreKind.UNCALIBRATED


@dataclass(frozen=True)
class Query:
    """One question about one image."""

    text: str
    dialogue: Dialogue = field(default_factory=Dialogue)  # earlier turns about the same image
    explain: bool = False  # ask for a reason
    region: Region | None = None  # look only here [px]; None: the whole image


@dataclass(frozen=True)
class InferenceOptions:
    """How a query is answered; a change applies from the next query on."""

    max_new_tokens: int = 512  # longest answer [tokens]
    confidence_threshold: float | None = None  # drop masks below this score; None: the model's own
    refine: bool | None = None  # refine mask boundaries with image edges; None: the model's own
    dialogue_boxes: bool = False  # tell the model the boxes of earlier masks, as text
    typed_specials: bool = False  # "[SEG]" typed in a query is the token, as in the original


@dataclass(frozen=True)
class LoadOptions:
    """Where and how a model's weights are loaded; None: as the backend chooses."""

    device: str | None = None  # cpu, cuda, cuda:1
    precision: str | None = None  # fp32, bf16, fp16, int8, nf4
    vision_tower: str | None = None  # CLIP, folder or hub id
    sam: str | None = None  # a .pth file of segment-anything
    template: str | None = None  # conversation template
    threads: int | None = None  # CPU threads


class Cancellation(Protocol):
    """Tells a backend to stop; a `threading.Event` is one. Set from any thread."""

    def is_set(self) -> bool:
        """Return whether to stop as soon as possible."""


class Backend(Protocol):
    """A loaded model. One thread at a time calls it; `Cancellation` is set from any thread."""

    @property
    def device(self) -> str:
        """The device that the model runs on, as torch names it, or a server's address."""

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
        """Answer a query: Token and MaskReady as they come, then exactly one Done.

        Args:
            image: (H, W, 3) uint8 RGB.
            query: without a region: `roi.stream_in_region` crops and pastes back.
            options: how to answer.
            cancel: asked before every token.

        Raises:
            ImageError: the image is not (H, W, 3) uint8.
            QueryError: the text is empty or too long.
        """

    def encode_images(self, images: Sequence[np.ndarray]) -> None:
        """Encode several (H, W, 3) uint8 RGB images at once; kept until the next call."""

    def clear_cache(self) -> None:
        """Drop everything that is kept of earlier images."""


class BackendLoader(Protocol):
    """Loads the models of one scheme, such as "vlm+sam:"; see `registry.register_backend`."""

    def __call__(self, model: str, options: LoadOptions) -> Backend:
        """Load a model.

        Args:
            model: its name, without the scheme.
            options: device, precision and companions.

        Raises:
            CheckpointError: the files are not a whole model of this kind.
            SettingsError: the device or precision is not available.
        """
