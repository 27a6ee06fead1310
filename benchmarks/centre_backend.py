# SPDX-License-Identifier: Apache-2.0
"""A backend that answers at once with the centre of the image; registers "centre:".

It keeps nothing, so a leak beside it is one of the node.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from lisa_ros.perception.backend import (
    Cancellation,
    Capabilities,
    InferenceOptions,
    LoadOptions,
    Query,
)
from lisa_ros.perception.registry import register_backend
from lisa_ros.results import Done, Event, MaskReady, Segmentation, Status, Token

_ANSWER = 'It is here.'


class CentreBackend:
    """Answers each query with a mask of half the width and half the height, in the centre."""

    device, capabilities = 'cpu', Capabilities(explains=True, dialogue=True)

    def encode_images(self, images: Sequence[np.ndarray]) -> None:
        """Do nothing."""

    def clear_cache(self) -> None:
        """Do nothing."""

    def stream(
        self,
        image: np.ndarray,
        query: Query,
        options: InferenceOptions,
        cancel: Cancellation,
    ) -> Iterator[Event]:
        """Yield a text and a mask; the result has the time that they took, as `model`."""
        start = time.perf_counter()
        height, width = image.shape[:2]
        logits = np.full((1, height, width), -5, np.float32)
        logits[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = 5
        masks = logits > 0
        timings = {'model': time.perf_counter() - start}
        yield Token(_ANSWER)
        yield MaskReady(0, masks[0], logits[0], 1.0)
        status = Status.CANCELLED if cancel.is_set() else Status.FOUND
        arrays = masks, logits, np.ones(1)
        yield Done(Segmentation(query.text, _ANSWER, _ANSWER, *arrays, status, timings=timings))


def load(name: str, options: LoadOptions) -> CentreBackend:
    """Return the backend; the name has no meaning."""
    return CentreBackend()


register_backend('centre', load)
