# SPDX-License-Identifier: Apache-2.0
"""Read the chunks of a streamed chat completion, as OpenAI defines them. Any thread."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace

from lisa_ros.error_text import one_line, short_repr
from lisa_ros.errors import ModelError

_LEAST_LOGPROB = -1000.0  # below it a probability is 0
# finish_reason of Together, TGI and gateways to Bedrock for what OpenAI calls "stop"
_STOPPED = ('eos', 'eos_token', 'end_turn')


@dataclass(frozen=True)
class TokenProbability:
    """A token of an answer, and how probable it and others were at its place."""

    text: str
    probability: float  # given all tokens before it
    alternatives: dict[str, float] = field(default_factory=dict)  # probabilities by text


@dataclass(frozen=True)
class AnswerPiece:
    """A part of an answer: one token or a few."""

    text: str  # to append
    tokens: tuple[TokenProbability, ...] = ()  # of the text; empty: the server gives none
    finish_reason: str = ''  # stop, length, ...: the answer ends here; '': it goes on
    reasoning: str = ''  # what a server takes out of <think> tags, before the text


class WholeCharacters:
    """Joins the halves of characters that a server has cut apart, between two chunks.

    In UTF-16 an emoji is a pair of surrogates; servers that count in it may send one of them with
    each chunk. A half without the other one becomes U+FFFD.
    """

    def __init__(self) -> None:
        self._text = self._reasoning = ''  # first halves that are held back
        self._tokens: tuple[TokenProbability, ...] = ()  # theirs

    def join(self, piece: AnswerPiece) -> AnswerPiece | None:
        """Return a piece in whole characters; None: it has only a first half."""
        is_end = bool(piece.finish_reason)
        text, self._text = _whole(self._text + piece.text, is_end)
        reasoning, self._reasoning = _whole(
            self._reasoning + piece.reasoning, is_end or bool(text)
        )
        tokens, self._tokens = (*self._tokens, *piece.tokens), ()
        if not (text or reasoning or is_end):
            self._tokens = tokens
            return None
        return replace(piece, text=text, reasoning=reasoning, tokens=tokens)


def _whole(text: str, is_end: bool) -> tuple[str, str]:
    """Return a text in whole characters, and a first half at its end if that is not its end."""
    half = text[-1:] if not is_end and '\ud800' <= text[-1:] <= '\udbff' else ''
    units = text[: len(text) - len(half)].encode('utf-16-le', 'surrogatepass')
    return units.decode('utf-16-le', 'replace'), half


def read_chunk(content: str) -> AnswerPiece | None:
    """Return what a chunk adds to the answer; None: nothing, as the one with the usage.

    Args:
        content: of an event, JSON.

    Raises:
        ModelError: it is no chunk, or the server reports an error in it.
    """
    try:
        chunk = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f'an event of the answer is not JSON ({one_line(error)}): {one_line(content, 80)!r}'
        ) from None
    if isinstance(chunk, dict) and chunk.get('error'):
        error = chunk['error']
        message = error.get('message') if isinstance(error, dict) else error
        if not (message and isinstance(message, str)):
            message = short_repr(error)
        raise ModelError(f'the server reports an error: {one_line(message)}')
    choices = chunk.get('choices') if isinstance(chunk, dict) else None
    if choices == []:
        return None
    choice = choices[0] if isinstance(choices, list) else None
    delta = _delta(choice) if isinstance(choice, dict) else None
    parts: list[object] = [None]
    if isinstance(delta, dict):
        reasoning = delta.get('reasoning_content') or delta.get('reasoning')
        parts = [delta.get('content'), choice.get('finish_reason'), reasoning]
        parts = [part or '' for part in parts]
    if not all(isinstance(part, str) for part in parts):
        raise ModelError(
            f'an event of the answer is {one_line(content, 80)!r}; expected a chunk of a chat '
            'completion'
        )
    text, finish_reason, reasoning = parts
    if not (text or finish_reason or reasoning):  # the role
        return None
    finish_reason = 'stop' if finish_reason in _STOPPED else finish_reason
    return AnswerPiece(text, _tokens(choice.get('logprobs')), finish_reason, reasoning)


def _delta(choice: dict) -> object:
    """Return what a choice adds: nothing if it only ends an answer, or has Azure's filter results.

    A choice without `delta` that has a whole answer is none of a chunk: None.
    """
    delta = choice.get('delta')
    adds_nothing = 'finish_reason' in choice and not {'message', 'text'} & choice.keys()
    return {} if delta is None and adds_nothing else delta


def _tokens(logprobs: object) -> tuple[TokenProbability, ...]:
    """Return the tokens of a chunk; none if one of them has no probability."""
    entries = logprobs.get('content') if isinstance(logprobs, dict) else None
    tokens = []
    for entry in entries if isinstance(entries, list) else ():
        token = _token(entry)
        if token is None:
            return ()
        ranked = entry.get('top_logprobs')
        candidates = map(_token, ranked if isinstance(ranked, list) else ())
        alternatives = {each.text: each.probability for each in candidates if each is not None}
        tokens.append(TokenProbability(token.text, token.probability, alternatives))
    return tuple(tokens)


def _token(entry: object) -> TokenProbability | None:
    """Return a token; None if it has no text or no probability."""
    values = entry if isinstance(entry, dict) else {}
    text, logprob = values.get('token'), values.get('logprob')
    if not isinstance(text, str) or type(logprob) not in (int, float):
        return None
    if logprob != logprob:  # NaN; math.isnan fails for an int that no float can hold
        return None
    return TokenProbability(text, math.exp(max(_LEAST_LOGPROB, min(logprob, 0.0))))
