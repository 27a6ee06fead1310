# SPDX-License-Identifier: Apache-2.0
"""Which probabilities a server with chat completions gives, learnt from its answers.

Threads: one at a time.
"""

from __future__ import annotations

from lisa_ros.vlm.chat_chunks import AnswerPiece

_FEWER_ALTERNATIVES = 5  # the limit of older vLLM (github.com/vllm-project/vllm/issues/5299)


class ProbabilitySupport:
    """What a server has given so far; None: not known yet.

    Once it has given probabilities it is asked for them always: single pieces may lack them.
    """

    def __init__(self) -> None:
        self.tokens: bool | None = None  # of the tokens of an answer
        self.alternatives: int | None = None  # how many other tokens at the same place; 0: none

    def fields(self, alternatives: int) -> list[dict[str, object]]:
        """Return what to add to a request: with most first, then with less, then nothing.

        What a server did not give, with nothing refused, is not wanted again.

        Args:
            alternatives: how many other tokens are wanted at each place.
        """
        fields: list[dict[str, object]] = [{}]
        if self.tokens is not False:
            fields.insert(0, {'logprobs': True})
            most = alternatives if self.alternatives is None else self.alternatives
            for count in sorted({min(_FEWER_ALTERNATIVES, alternatives), alternatives}):
                if 0 < count <= most:
                    fields.insert(0, {'logprobs': True, 'top_logprobs': count})
        return fields

    def note(self, piece: AnswerPiece, alternatives: int, asked: int) -> None:
        """Learn from a piece of the answer to a request, after those with more were refused.

        Args:
            piece: of the answer.
            alternatives: how many other tokens are wanted at each place.
            asked: how many of them the request asked for.
        """
        if not piece.text:
            return
        if piece.tokens:
            self.tokens = True
        elif self.tokens is None:
            self.tokens = False
        if asked and any(token.alternatives for token in piece.tokens):
            self.alternatives = asked
        elif alternatives and self.alternatives is None:
            self.alternatives = 0
