# SPDX-License-Identifier: Apache-2.0
"""Read a pointing model's answer while its tokens arrive: objects, their words, the end.

Threads: one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from lisa_ros.vlm.answer_parsing import AnswerError, AnswerParser, LocatedObject
from lisa_ros.vlm.pointing_model import WordToken


@dataclass
class VlmReading:
    """An answer while its tokens arrive."""

    parser: AnswerParser
    stop: str  # text that ends the answer; '': none
    has_ended: bool = False  # with this text, or with a token that ends a turn
    is_cut: bool = False  # at the limit of tokens
    error: AnswerError | None = None
    are_tokens: bool = True  # False: they are pieces of a server, which may be several tokens
    words_prob: float = 1.0  # of the words since the last object, without digits

    @property
    def is_over(self) -> bool:
        """Whether no further token is needed."""
        return self.has_ended or self.error is not None

    def push(self, token: WordToken) -> list[tuple[LocatedObject, float]]:
        """Add a token; return the objects that it completes, and the probability of their words.

        Digits do not count: another number near this one may be as right. Neither do tokens of
        which a server does not give the probability.
        """
        self.is_cut = token.is_cut
        self.are_tokens = self.are_tokens and _is_one_token(token)
        if token.probability is not None and not token.text.strip().isdigit():
            self.words_prob *= token.probability
        try:
            located = self.parser.push(token.text, is_end=token.is_end or token.is_cut)
        except AnswerError as error:
            self.error = error
            return []
        completed = [(found, self.words_prob) for found in located]
        if completed or not self.parser.has_begun:
            self.words_prob = 1.0
        is_stopped = bool(self.stop) and self.parser.is_complete and self.stop in self.parser.rest
        self.has_ended = token.is_end or is_stopped
        return completed

    def finish(self) -> None:
        """End the answer; `error` says what is wrong with it as a whole."""
        try:
            self.parser.finish()
        except AnswerError as error:
            self.error = self.error or error


def token_number(token: WordToken) -> int:
    """Return a number that equal tokens of an answer have in common; a server gives no ids."""
    return hash(token.text) if token.token_id is None else token.token_id


def _is_one_token(token: WordToken) -> bool:
    """Return whether text is known to be one token: without probabilities it may be several."""
    return token.token_id is not None or token.probability is not None or not token.text
