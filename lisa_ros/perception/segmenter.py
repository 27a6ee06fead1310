# SPDX-License-Identifier: Apache-2.0
"""The public Python API: an image and a query in, text and masks out.

    lisa = Segmenter.load('lisa-tabletop')
    result = lisa.segment(image, 'something to drink from')
    for event in lisa.stream(image, 'segment the red mug'): ...

This module imports neither torch nor transformers; `Segmenter.load` does for a LISA.
Threads: a Segmenter answers one request at a time; call it from one thread, or under a lock.
`cancel` may be set from any other thread meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lisa_ros.perception.backend import (
    Backend,
    Cancellation,
    InferenceOptions,
    LoadOptions,
    Query,
    ReportsNotices,
)
from lisa_ros.perception.batch import answer_requests
from lisa_ros.perception.registry import load_backend
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.resources import DEFAULT_MODEL
from lisa_ros.results import Dialogue, Done, Event, Region, Segmentation

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segmenter:
    """A model with its inference options; see the module's docstring for threads.

    The features of the newest images, and of those of the last `encode_images`, are kept: a
    query about one of them does not encode it again. Segmenters with other options may share a
    backend: `dataclasses.replace(segmenter, options=...)`.
    """

    backend: Backend
    options: InferenceOptions = field(default_factory=InferenceOptions)
    # how long loading took, with the import of its libraries [s]; None: the backend was given
    load_seconds: float | None = field(default=None, compare=False)

    @classmethod
    def load(
        cls,
        name: str | Path = DEFAULT_MODEL,
        *,
        device: str | None = None,
        precision: str | None = None,
        vision_tower: str | Path | None = None,
        segmenter_model: str | Path | None = None,
        vlm_url: str | None = None,
        api_key_env: str | None = None,
        api_key_file: str | Path | None = None,
        server_image: str | None = None,
        server_jpeg_quality: int | None = None,
        sam: str | Path | None = None,
        template: str | None = None,
        threads: int | None = None,
        allow_download: bool = False,
        sha256: str | None = None,
        lock: str | Path | None = None,
        max_input_side: int | None = None,
        max_model_size: float | None = None,
        options: InferenceOptions | None = None,
    ) -> Segmenter:
        """Load a model; arguments that are None have the backend's defaults.

        Args:
            name: "lisa-tabletop", a folder (ours or a released LISA), a hub id, "http://server:8000"
                or https for a model on a server, or "scheme:rest" of a registered backend.
            device: cpu, cuda, cuda:1; None or "auto": the GPU if there is one.
            precision: fp32, bf16, fp16, int8, nf4; None or "auto": bf16 on a GPU, fp32 on a CPU.
            vision_tower: folder or hub id of CLIP; None: the one that the checkpoint names.
            segmenter_model: folder or hub id of SAM 2 for a "vlm+sam:" model; None:
                facebook/sam2.1-hiera-large.
            vlm_url: server with the vision-language model of "vlm+sam:NAME", with OpenAI's chat
                completions; images are sent there. NAME is its name at the server. None: the
                model runs here.
            api_key_env: name of the environment variable with the server's key; None: no key.
            api_key_file: file with that key; None: none. Give one of both.
            server_image: how images are sent to a model on a server: jpeg, png or raw; None: jpeg.
            server_jpeg_quality: 1 to 100; None: 90.
            sam: a .pth file of segment-anything; it fills in weights of SAM that a released LISA
                lacks (LISA does not train SAM's vision encoder, so files may omit it).
            template: conversation template, or profile of a "vlm+sam:" model; None: the
                checkpoint's.
            threads: CPU threads of the model; None: as torch chooses.
            allow_download: download the CLIP that a local folder's config.json names by its hub
                id. A hub id given as `name` or `vision_tower` is downloaded without this.
            sha256: load only a model whose folder or only weight file has this SHA-256.
            lock: a file with the checksums of all that is loaded (`model.checksums`).
            max_input_side: largest input of CLIP and SAM that a model may claim [px]; None: 1024.
            max_model_size: largest size of the weights [GB]; None: the free memory.
            options: how queries are answered; None: the defaults of InferenceOptions.

        Raises:
            CheckpointError: the files are not a model, or are incomplete.
            SettingsError: the scheme, the device, the precision or the template is not available.
        """
        load_options = LoadOptions(
            device=device,
            precision=precision,
            vision_tower=vision_tower,
            segmenter_model=segmenter_model,
            vlm_url=vlm_url,
            api_key_env=api_key_env,
            api_key_file=api_key_file,
            server_image=server_image,
            server_jpeg_quality=server_jpeg_quality,
            sam=sam,
            template=template,
            threads=threads,
            allow_download=allow_download,
            sha256=sha256,
            lock=lock,
            max_input_side=max_input_side,
            max_model_size=max_model_size,
        )
        return cls.load_with(str(name), load_options, options)

    @classmethod
    def load_with(
        cls, name: str, load_options: LoadOptions, options: InferenceOptions | None = None
    ) -> Segmenter:
        """Load a model as `load` does, with its options as one value."""
        start = time.perf_counter()
        backend = load_backend(name, load_options)
        for notice in backend.notices if isinstance(backend, ReportsNotices) else ():
            _log.warning(notice)
        return cls(backend, options or InferenceOptions(), time.perf_counter() - start)

    @property
    def device(self) -> str:
        """The device of the model, as torch names it, or a server's address."""
        return self.backend.device

    def encode_images(self, images: Sequence[np.ndarray]) -> None:
        """Encode several (H, W, 3) uint8 RGB images at once, which a GPU does faster.

        The features are kept until the next call. The `timings` of the first answer about an image
        include its share of the encoding time.

        Raises:
            ImageError: one of them has another shape or type.
        """
        self.backend.encode_images(images)

    def clear_cache(self) -> None:
        """Drop the features of earlier images."""
        self.backend.clear_cache()

    def segment(
        self,
        image: np.ndarray,
        text: str,
        dialogue: Dialogue | None = None,
        cancel: Cancellation | Callable[[], bool] | None = None,
        *,
        explain: bool = False,
        region: Region | None = None,
        yes_no: bool = False,
    ) -> Segmentation:
        """Answer a query about an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            text: the query.
            dialogue: earlier turns about the same image; the oldest whole turns are dropped until
                the prompt fits.
            cancel: an Event, or a function that returns whether to stop; checked before each
                token.
            explain: ask for a reason, too.
            region: segment only this (x, y, width, height) [px]; None: the whole image. Masks
                are (H, W) of the whole image either way.
            yes_no: answer with yes or no, without masks; the result has `yes_probability`.

        Returns:
            The result. Its status is FAILED, with a reason, if the model computed NaN or masks of
            another size, or answers a yes/no question neither with yes nor with no.

        Raises:
            ImageError: the image is not (H, W, 3) uint8, or the region is not within it.
            QueryError: the text is empty, or too long by itself; or the model cannot answer
                yes/no questions.
        """
        events = self.stream(
            image, text, dialogue, cancel, explain=explain, region=region, yes_no=yes_no
        )
        for event in events:
            if isinstance(event, Done):
                return event.result
        raise AssertionError('a stream ends with Done')

    def segment_batch(
        self,
        requests: Sequence[tuple[np.ndarray, str | Query]],
        cancel: Cancellation | Callable[[], bool] | None = None,
    ) -> list[Segmentation]:
        """Answer several queries at once, which a GPU does faster; each as `segment` does.

        Args:
            requests: images (H, W, 3) uint8 RGB, of any size, and queries about them; several may
                be about one image.
            cancel: as in `segment`; ends all answers.

        Returns:
            The results, in the order of the requests. A request that is not valid has the status
            FAILED, with the reason.
        """
        queries = [(image, q if isinstance(q, Query) else Query(q)) for image, q in requests]
        return answer_requests(self.backend, queries, self.options, _cancellation(cancel))

    def stream(
        self,
        image: np.ndarray,
        text: str,
        dialogue: Dialogue | None = None,
        cancel: Cancellation | Callable[[], bool] | None = None,
        *,
        explain: bool = False,
        region: Region | None = None,
        yes_no: bool = False,
    ) -> Iterator[Event]:
        """Yield the answer in pieces: Token and MaskReady as they arrive, then exactly one Done.

        A MaskReady directly follows the Token of its [SEG], before the text after it. Arguments
        and errors as `segment`; errors are raised by this call, not by the iteration.
        """
        query = Query(text, dialogue or Dialogue(), explain, region, yes_no)
        return stream_in_region(self.backend, image, query, self.options, _cancellation(cancel))


@dataclass(frozen=True)
class _CancelFunction:
    """A function as a Cancellation."""

    is_set: Callable[[], bool]


def _cancellation(cancel: Cancellation | Callable[[], bool] | None) -> Cancellation:
    if cancel is None:
        return threading.Event()
    return cancel if hasattr(cancel, 'is_set') else _CancelFunction(cancel)
