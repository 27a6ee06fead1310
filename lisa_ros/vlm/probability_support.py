# SPDX-License-Identifier: Apache-2.0
"""Which probabilities a server with chat completions gives, learnt from its answers.

Threads: one at a time.
"""

from __future__ import annotations

from lisa_ros.vlm.chat_chunks import AnswerPiece


class ProbabilitySupport:
    """What a server has given so far; None: not known yet.

    Once it has given probabilities it is asked for them always: single pieces may lack them.
    """

    def __init__(self) -> None:
        self.tokens: bool | None = None  # of the tokens of an answer
        self.alternatives: bool | None = None  # of other tokens at the same place

    def fields(self, alternatives: int) -> list[dict[str, object]]:
        """Return what to add to a request: with most first, then with less, then nothing.

        Args:
            alternatives: how many other tokens are wanted at each place.
        """
        fields: list[dict[str, object]] = [{}]
        if self.tokens is not False:
            fields.insert(0, {'logprobs': True})
        if alternatives and self.tokens is not False and self.alternatives is not False:
            fields.insert(0, {'logprobs': True, 'top_logprobs': alternatives})
        return fields

    def note(self, piece: AnswerPiece, alternatives: int) -> None:
        """Learn from a piece of the answer to a request, after those with more were refused."""
        if not piece.text:
            return
        if piece.tokens:
            self.tokens = True
        elif self.tokens is None:
            self.tokens = False
        if any(token.alternatives for token in piece.tokens):
            self.alternatives = True
        elif alternatives and self.alternatives is None:
            self.alternatives = False
