# SPDX-License-Identifier: Apache-2.0
"""A backend that answers at once with a mask of the bright pixels; registers "bright:".

It keeps nothing, so a leak beside it is one of the node.
"""

from __future__ import annotations

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

_BRIGHT = 200  # of 255
_ANSWER = 'It is here.'


class BrightBackend:
    """Answers each query with the pixels whose red is above 200."""

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
        """Yield a text and a mask."""
        logits = np.where(image[None, ..., 0] > _BRIGHT, 5, -5).astype(np.float32)
        yield Token(_ANSWER)
        yield MaskReady(0, logits[0] > 0, logits[0], 1.0)
        status = Status.CANCELLED if cancel.is_set() else Status.FOUND
        arrays = logits > 0, logits, np.ones(1)
        yield Done(Segmentation(query.text, _ANSWER, _ANSWER, *arrays, status))


def load(name: str, options: LoadOptions) -> BrightBackend:
    """Return the backend; the name has no meaning."""
    return BrightBackend()


register_backend('bright', load)
