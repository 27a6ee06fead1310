# SPDX-License-Identifier: Apache-2.0
"""A vision-language model that points, behind a server with OpenAI's chat completions.

The server gets one image in exactly the size that the profile asks for, so that it has no reason
to resize it: coordinates in an answer would count other pixels. Words are chosen greedily; the
server applies the repetition penalty of its model, if it has one.

Threads: as `chat_completions.ChatServer`, one thread at a time.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lisa_ros.api_key import read_api_key
from lisa_ros.error_text import one_line, short_repr
from lisa_ros.errors import ModelError, QueryError, SettingsError, UnreachableError
from lisa_ros.model.cache_use import CacheUse
from lisa_ros.results import Turn
from lisa_ros.vlm.chat_chunks import AnswerPiece, TokenProbability
from lisa_ros.vlm.chat_completions import ChatServer, RefusedError
from lisa_ros.vlm.coordinate_check import TEST_QUERY, CoordinateTest, draw_test_image
from lisa_ros.vlm.image_input import resize_image
from lisa_ros.vlm.pointing_model import ChoiceProbabilities, StopSignal, WordToken
from lisa_ros.vlm.probability_support import ProbabilitySupport
from lisa_ros.vlm.profiles import Profile, choose_served_profile, is_thinking_model

_JPEG_QUALITY = 90
_SELF_TEST_TIMEOUT = 120.0  # of the answers about test images [s]
_MAY_REFUSE_LOGPROBS = (400, 422, 501)  # status of HTTP
_MAX_ALTERNATIVES = 20  # tokens at one place, whose probabilities servers give
_MAX_THOUGHTS = 7168  # of a model that thinks before its answer [tokens]
_NOT_THOUGHTS = ('<think>', '[', '{', '`')  # beginnings that need no opening tag
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemotePrompt:
    """A query about an image, as the body of a request has it."""

    messages: tuple[dict[str, object], ...]
    resized: tuple[int, int]  # width and height of the image that is sent [px]


class _TimeLimit:
    """The end of a time limit as a stop signal."""

    def __init__(self, seconds: float):
        self._at = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """How long it lasts [s], at least 0."""
        return max(0.0, self._at - time.monotonic())

    def is_set(self) -> bool:
        """Return whether it is over."""
        return self.seconds_left == 0


class RemoteVlm:
    """A model that a server runs; a `PointingModel`."""

    def __init__(self, server: ChatServer, model: str, profile: Profile):
        """Wrap a server; `connect` also tests it.

        Args:
            server: that runs the model.
            model: as the server calls it.
            profile: how to ask it.
        """
        self.profile = profile
        self._server, self._model = server, model
        self._support = ProbabilitySupport()
        self._test = CoordinateTest(profile)
        # it thinks first, and the opening <think> is in its prompt, not in its answer
        self._thinks = is_thinking_model(model) and not profile.tags
        self.notices: tuple[str, ...] = ()  # what a user should know about the server

    @classmethod
    def connect(
        cls,
        url: str,
        model: str,
        template: str | None = None,
        api_key_env: str | None = None,
        api_key_file: str | Path | None = None,
    ) -> RemoteVlm:
        """Return a model of a server, and test where it points in images that are known.

        A server that cannot be reached yet is no error: it is tested before its first answer.

        Args:
            url: as `chat_completions.completions_url` takes it.
            model: as the server calls it.
            template: name of the profile; None: by the model's name.
            api_key_env: name of the environment variable with the key; None: none.
            api_key_file: file with the key; None: none. Without both, no key is sent.

        Raises:
            SettingsError: a setting is wrong, or the model's coordinates are not those of the
                profile.
            ModelError: the server refuses the request, or gives no answer that can be read.
        """
        if not model:
            raise SettingsError('model is "vlm+sam:"; expected vlm+sam:NAME, as vlm_url serves it')
        profile = choose_served_profile(model, template)
        server = ChatServer(url, read_api_key(api_key_env, api_key_file))
        vlm, notices = cls(server, model, profile), [_privacy_notice(server, model)]
        try:
            # a slow server has time for a smaller image, too
            if not vlm._run_test(_TimeLimit(_SELF_TEST_TIMEOUT / 3)):
                vlm._run_test(_TimeLimit(2 * _SELF_TEST_TIMEOUT / 3))
        except UnreachableError as error:
            notices.append(f'{error}; until it can be reached, requests end as UNREACHABLE')
        else:
            if vlm._test.problem:
                raise SettingsError(f'vlm_url {server.address}: {vlm._test.problem}')
            notices += vlm._test_notices()
        vlm.notices = tuple(notices)
        return vlm

    @property
    def device(self) -> str:
        """The address of the server."""
        return self._server.address

    @property
    def cache_use(self) -> CacheUse | None:
        """None: the server keeps earlier prompts, or does not."""
        return None

    def clear_cache(self) -> None:
        """Do nothing: the server keeps earlier prompts, or does not."""

    def prepare(
        self,
        image: np.ndarray,
        query: str,
        min_answer_tokens: int = 1,
        turns: Sequence[Turn] = (),
    ) -> RemotePrompt:
        """Return the prompt of a query about an image; see `PointingModel`.

        The server knows how long a prompt may be: one that is too long is refused later.
        """
        if not query.strip().strip(self.profile.stripped):
            raise QueryError('the query is empty: say what to look for, as in "the red mug"')
        return self.prepare_request(image, self.profile.request(query), turns)

    def prepare_request(
        self, image: np.ndarray, request: str, turns: Sequence[Turn] = ()
    ) -> RemotePrompt:
        """Return the prompt of a request that is not the profile's; see `PointingModel`."""
        return self._prompt(image, request, self.profile.exchanges(turns))

    def max_answer_tokens(self, prompt: RemotePrompt) -> int:
        """Return how many tokens an answer may have, by the profile; with its thoughts."""
        return self.profile.max_new_tokens + (_MAX_THOUGHTS if self._thinks else 0)

    def generate(
        self, prompt: RemotePrompt, max_new_tokens: int, stop: StopSignal
    ) -> Iterator[WordToken]:
        """Yield the answer's tokens; see `PointingModel`.

        Raises:
            ModelError: the server's answer cannot be read, or its model points in other units
                than the profile has, or in an image that the server resizes.
            UnreachableError: the server cannot be reached, or broke off.
        """
        was_over = self._test.is_over
        if not self._run_test(stop, prompt.resized):
            return
        if not was_over:
            for notice in self._test_notices():
                _log.warning(notice)
        problem = self._test.problem_of(prompt.resized)
        if problem:
            raise ModelError(f'{self.device}: {problem}')
        yield from self._words(prompt, max_new_tokens, stop)

    def choice_probabilities(
        self, prompt: RemotePrompt, choices: Sequence[str], stop: StopSignal
    ) -> ChoiceProbabilities:
        """Return how probable each choice is as the first token; see `PointingModel`."""
        for piece in self._stream(prompt, 1, stop, _MAX_ALTERNATIVES):
            if not piece.text:
                continue
            first = piece.tokens[0] if piece.tokens else TokenProbability(piece.text, 1.0)
            if not _is_named(first, piece.text):
                first = TokenProbability(piece.text, 1.0)
            is_measured = bool(first.alternatives)
            probabilities = {first.text: first.probability if is_measured else 1.0}
            probabilities |= first.alternatives
            values = (
                sum(p for text, p in probabilities.items() if text.strip() == choice)
                for choice in choices
            )
            return ChoiceProbabilities(tuple(values), is_measured)
        return ChoiceProbabilities((0.0,) * len(choices))

    # ---- requests

    def _prompt(
        self, image: np.ndarray, request: str, turns: Sequence[tuple[str, str]] = ()
    ) -> RemotePrompt:
        """Return the messages: the image, then the earlier requests and answers, then a request.

        Args:
            image: (H, W, 3) uint8 RGB.
            request: the whole text.
            turns: earlier requests and their answers.
        """
        resized = resize_image(image, self.profile.resize, self.profile.cell)
        kind, content = ('png' if self.profile.lossless else 'jpeg'), io.BytesIO()
        resized.save(content, kind, quality=_JPEG_QUALITY, subsampling=0)
        encoded = base64.b64encode(content.getvalue()).decode('ascii')
        url = f'data:image/{kind};base64,{encoded}'
        parts: list[dict[str, object]] = [{'type': 'image_url', 'image_url': {'url': url}}]
        messages: list[dict[str, object]] = []
        if self.profile.system:
            messages.append({'role': 'system', 'content': self.profile.system})
        for earlier, answer in turns:
            messages.append({'role': 'user', 'content': [*parts, _text_part(earlier)]})
            messages.append({'role': 'assistant', 'content': answer})
            parts = []  # only the first request has the image
        messages.append({'role': 'user', 'content': [*parts, _text_part(request)]})
        return RemotePrompt(tuple(messages), resized.size)

    def _words(
        self, prompt: RemotePrompt, max_new_tokens: int, stop: StopSignal
    ) -> Iterator[WordToken]:
        count, is_thinking, has_begun = 0, False, not self._thinks
        for piece in self._stream(prompt, max_new_tokens, stop):
            has_begun = has_begun or bool(piece.reasoning)  # the server takes the thoughts out
            for token in (*self._thoughts(piece, is_thinking), *word_tokens(piece)):
                is_first = not has_begun and bool(token.text.strip())
                yield _opened(token) if is_first else token
                has_begun = has_begun or is_first
                count += 1
            is_thinking = bool(piece.reasoning) and not piece.text
            if piece.finish_reason not in ('', 'stop', 'length'):
                reason = one_line(piece.finish_reason)
                raise ModelError(f'{self.device} ended the answer with finish_reason {reason!r}')
            if count >= max_new_tokens:  # a server may not count
                return

    def _thoughts(self, piece: AnswerPiece, is_thinking: bool) -> Iterator[WordToken]:
        """Yield the reasoning of a piece in its tags again, if the profile expects them.

        Args:
            piece: of the answer.
            is_thinking: the piece before it is reasoning, too.
        """
        begin = '<think>' if piece.reasoning and not is_thinking else ''
        has_ended = bool(piece.text) if piece.reasoning else is_thinking
        text = begin + piece.reasoning + ('</think>' if has_ended else '')
        if text and self.profile.tags:
            yield WordToken(None, text, None, is_end=False)

    def _stream(
        self,
        prompt: RemotePrompt,
        max_new_tokens: int,
        stop: StopSignal,
        alternatives: int = 0,
    ) -> Iterator[AnswerPiece]:
        """Yield an answer; with probabilities, unless the server refuses to give them.

        Args:
            prompt: of `_prompt`.
            max_new_tokens: length limit of the answer.
            stop: ends it early.
            alternatives: how many other tokens at each place have a probability, too.
        """
        request = {
            'model': self._model,
            'messages': prompt.messages,
            'max_tokens': max_new_tokens,
            'temperature': 0,  # always: a model's own default may draw words at random
        }
        *attempts, last = self._support.fields(alternatives)
        for fields in attempts:
            try:
                yield from self._noted({**request, **fields}, stop, alternatives)
                return
            except RefusedError as error:  # noqa: PERF203  # before the first piece
                if error.status not in _MAY_REFUSE_LOGPROBS:
                    raise
        yield from self._noted({**request, **last}, stop, alternatives)

    def _noted(
        self, request: Mapping[str, Any], stop: StopSignal, alternatives: int
    ) -> Iterator[AnswerPiece]:
        """Yield an answer; note which probabilities it has."""
        for piece in self._server.stream(request, stop):
            self._support.note(piece, alternatives, request.get('top_logprobs', 0))
            yield piece

    # ---- the test

    def _run_test(self, stop: StopSignal, size: tuple[int, int] | None = None) -> bool:
        """Ask about the test images that are left; return False if `stop` is set before the end.

        Args:
            stop: ends it early; the next call goes on.
            size: width and height of the image that is sent afterwards [px]; None: none is.
        """
        while (test_size := self._test.next_size(size)) is not None:
            prompt = self.prepare(draw_test_image(test_size), TEST_QUERY)
            try:
                answer = self._text(prompt, stop)
            except ModelError as error:
                status = error.status if isinstance(error, RefusedError) else 0
                if not self._test.add_refusal(str(error), status):
                    raise
                continue
            if stop.is_set():
                if stop.seconds_left == 0:
                    self._test.add_timeout()
                return False
            if '</think>' in answer and '<think>' not in answer:
                self._thinks = not self.profile.tags
            self._test.add(answer, test_size, prompt.resized)
        return True

    def _text(self, prompt: RemotePrompt, stop: StopSignal) -> str:
        """Return an answer, up to its end or until `stop` is set."""
        text = ''
        for token in self._words(prompt, self.profile.max_new_tokens, stop):
            text += token.text
            if self.profile.stop and self.profile.stop in text:
                break
        return text

    def _test_notices(self) -> list[str]:
        """Return what a user should know after the test."""
        notices = self._test.warnings
        if not self._test.is_over:
            notices.append(f'{self.device} did not answer a test in {_SELF_TEST_TIMEOUT:g} s')
        if self._support.tokens is False:
            notices.append(
                f'{self.device} gives no probabilities of tokens (logprobs): scores are those of '
                'SAM 2 alone, verify decides by the number that the model says, and yes/no '
                'questions have no answer'
            )
        if self._thinks:
            notices.append(
                f'the model {short_repr(self._model)} thinks before it answers: max_new_tokens '
                'must have room for that, verify decides nothing, and yes/no questions have no '
                'answer; an Instruct model answers at once'
            )
        return notices


def _text_part(text: str) -> dict[str, object]:
    return {'type': 'text', 'text': text}


def _is_named(token: TokenProbability, text: str) -> bool:
    """Return whether a token is named by its text, as far as an answer's first text tells.

    A server may give its id, as "token_id:15" (vLLM with --return-tokens-as-token-ids), or its
    entry in the vocabulary. Spaces may differ, and bytes of a character have no text.

    Args:
        token: the first one of the answer.
        text: of the answer's first piece.
    """
    name, text = token.text.strip(), text.strip()
    return not text.isascii() or text.startswith(name) or name.startswith(text)


def _opened(token: WordToken) -> WordToken:
    """Return the first token of a model that thinks with the opening tag, which its prompt has.

    An answer that begins with its list has no thoughts: the server keeps them to itself.
    """
    if token.text.lstrip().startswith(_NOT_THOUGHTS):
        return token
    return dataclasses.replace(token, text=f'<think>{token.text}')


def word_tokens(piece: AnswerPiece) -> Iterator[WordToken]:
    """Yield the tokens of a piece; its text as one token if it cannot be divided."""
    if piece.tokens and ''.join(token.text for token in piece.tokens) == piece.text:
        for token in piece.tokens:
            yield WordToken(None, token.text, token.probability, is_end=False)
    elif piece.text:
        words = [t.probability for t in piece.tokens if not t.text.strip().isdigit()]
        probability = math.prod(words) if piece.tokens else None
        yield WordToken(None, piece.text, probability, is_end=False)
    if piece.finish_reason in ('stop', 'length'):
        is_cut = piece.finish_reason == 'length'
        yield WordToken(None, '', None, is_end=not is_cut, is_cut=is_cut)


def _privacy_notice(server: ChatServer, model: str) -> str:
    """Return what leaves the robot, for the log."""
    notice = f'images are sent to {server.address} for the model {short_repr(model)} (vlm_url)'
    if server.is_private:
        return notice
    return f'{notice} without encryption: whoever is in between can read them; prefer https'
