# SPDX-License-Identifier: Apache-2.0
"""The PointingModel protocol: a vision-language model that says where objects are, in words.

`qwen_vl.QwenVL` runs in this process, `remote_vlm.RemoteVlm` asks a server. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from lisa_ros.model.cache_use import CacheUse
from lisa_ros.results import Turn
from lisa_ros.vlm.profiles import Profile


@dataclass(frozen=True)
class WordToken:
    """A token of an answer."""

    token_id: int | None  # in the vocabulary; None: a server does not give it
    text: str  # to append; '' while a character is incomplete, and of the token that ends
    probability: float | None  # given all tokens before it; None: a server does not give it
    is_end: bool  # this token ends the answer
    is_cut: bool = False  # the limit of tokens ends the answer here


@dataclass(frozen=True)
class ChoiceProbabilities:
    """How probable each of some choices is as the first token of an answer."""

    values: tuple[float, ...]  # in the order of the choices; zeros: there was no answer
    # False: a server gives the choice that its model says, which has 1, and not the other ones
    is_measured: bool = True


class StopSignal(Protocol):
    """Tells a model to stop: a cancel, or the end of the time; set from any thread."""

    def is_set(self) -> bool:
        """Return whether the answer must stop."""

    @property
    def seconds_left(self) -> float | None:
        """How long the answer may take from now on [s], at least 0; None: no limit."""


class NeverStop:
    """A stop signal that is never set."""

    seconds_left: float | None = None

    def is_set(self) -> bool:
        """Return False."""
        return False


class PreparedPrompt(Protocol):
    """A query about an image, as a model takes it."""

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height of the image that the model gets [px]."""


Prompt = TypeVar('Prompt', bound=PreparedPrompt)


class PointingModel(Protocol[Prompt]):
    """A vision-language model that points. One thread at a time calls it."""

    @property
    def profile(self) -> Profile:
        """How the model is asked, and how its answers are read."""

    @property
    def device(self) -> str:
        """The device of the model, as torch names it, or the address of a server."""

    @property
    def cache_use(self) -> CacheUse | None:
        """What is kept of earlier prompts; None: nothing, or a server keeps it."""

    def clear_cache(self) -> None:
        """Drop the keys and values of earlier prompts."""

    def prepare(
        self,
        image: np.ndarray,
        query: str,
        min_answer_tokens: int = 1,
        turns: Sequence[Turn] = (),
    ) -> Prompt:
        """Return the prompt of a query about an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            query: as the user typed it.
            min_answer_tokens: positions that it leaves free.
            turns: earlier ones about the image. The oldest are left out until the prompt fits; a
                model that was not trained with several questions (`Profile.dialogue`) gets none.

        Raises:
            ImageError: one side of the image is more than 200 times as long as the other.
            QueryError: the query is empty, or too long.
        """

    def prepare_request(
        self, image: np.ndarray, request: str, turns: Sequence[Turn] = ()
    ) -> Prompt:
        """Return the prompt of a request that is not the profile's; see `prepare`.

        Args:
            image: (H, W, 3) uint8 RGB.
            request: the whole text after the image and the earlier turns.
            turns: earlier ones about the image.

        Raises:
            ImageError: as `prepare`.
            QueryError: the request is too long.
        """

    def max_answer_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens an answer may have, by the profile and the prompt's length."""

    def generate(
        self, prompt: Prompt, max_new_tokens: int, stop: StopSignal
    ) -> Iterator[WordToken]:
        """Yield the answer's tokens, up to and with one that ends it, or until limit or stop.

        Args:
            prompt: of `prepare`.
            max_new_tokens: length limit of the answer.
            stop: looked at before each token.

        Raises:
            ModelError: the scores of a token are NaN, or a server's answer cannot be read.
            UnreachableError: a server cannot be reached, or breaks off.
        """

    def choice_probabilities(
        self, prompt: Prompt, choices: Sequence[str], stop: StopSignal
    ) -> ChoiceProbabilities:
        """Return how probable each choice is as the first token of an answer.

        Args:
            prompt: of `prepare_request`.
            choices: texts of one token each.
            stop: ends it early, without an answer.

        Raises:
            ModelError: as `generate`.
            UnreachableError: as `generate`.
        """
