# SPDX-License-Identifier: Apache-2.0
"""Turn the tokens of one answer of LISA into events: text as it comes, a mask for each [SEG]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lisa_ros.errors import ModelError
from lisa_ros.model.generation import GeneratedToken
from lisa_ros.model.tokenizer import SPACE, Tokenizer
from lisa_ros.perception.answer_builder import AnswerBuilder
from lisa_ros.perception.image_encoder import EncodedImage, StageTimer
from lisa_ros.perception.mask_decoder import (
    MaskDecoder,
    MaskOptions,
    MaskRequest,
    ScoredMask,
    SegToken,
)
from lisa_ros.perception.stopping import EarlyEnd
from lisa_ros.results import Event, MaskReady, Segmentation, Token


class Reply:
    """One answer about one image; one thread."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        mask_decoder: MaskDecoder,
        encoded: EncodedImage,
        answer: AnswerBuilder,
        *,
        masks: MaskOptions,
        timer: StageTimer,
    ):
        """Begin.

        Args:
            tokenizer: of the model.
            mask_decoder: of the model.
            encoded: the image.
            answer: gets tokens and masks.
            masks: how masks are made.
            timer: gets the stages of the masks.
        """
        self._tokenizer, self._mask_decoder = tokenizer, mask_decoder
        self.encoded, self.answer, self.timer = encoded, answer, timer
        self._mask_options = masks
        self._pieces = tokenizer.stream()
        self._text_prob = 1.0

    def push(self, step: GeneratedToken) -> Iterator[Event]:
        """Yield the events of the next token: its text, and the mask of a [SEG]."""
        yield self._add_token(step)
        if step.token_id == self._tokenizer.seg_token_id:
            yield from self.decode(SegToken(step.state, step.probability, self._text_prob))

    def push_decoded(
        self, step: GeneratedToken, masks: Iterator[ScoredMask | ModelError]
    ) -> Iterator[Event]:
        """Yield the events of the next token, whose mask is decoded already.

        Args:
            step: the token.
            masks: those of `mask_requests` that are left; the first one is taken for a [SEG].

        Raises:
            ModelError: the mask is not finite.
        """
        yield self._add_token(step)
        if step.token_id == self._tokenizer.seg_token_id and not self.answer.is_full:
            yield from self._add_mask(next(masks))

    def mask_requests(self, steps: Sequence[GeneratedToken]) -> list[MaskRequest]:
        """Return the masks that the next tokens need, in their order; nothing is changed."""
        requests, text_prob = [], self._text_prob
        for step in steps:
            text_prob *= self._text_factor(step)
            if step.token_id == self._tokenizer.seg_token_id:
                seg = SegToken(step.state, step.probability, text_prob)
                requests.append(self._mask_request(seg))
        return requests

    def decode(self, seg: SegToken) -> Iterator[MaskReady]:
        """Decode the mask of a [SEG] and yield its event, unless the answer leaves it out."""
        if not self.answer.is_full:
            yield from self._add_mask(self._mask_decoder.decode(self._mask_request(seg)))

    def _add_token(self, step: GeneratedToken) -> Token:
        self._text_prob *= self._text_factor(step)
        self.answer.token_ids.append(step.token_id)
        return Token(self._pieces.push(step.token_id), step.token_id)

    def _text_factor(self, step: GeneratedToken) -> float:
        """Return the probability of a token, 1 of digits: another number may be as right."""
        is_number = self._tokenizer.id_to_token(step.token_id).strip(SPACE).isdigit()
        return 1.0 if is_number else step.probability

    def _mask_request(self, seg: SegToken) -> MaskRequest:
        return MaskRequest(seg, self.encoded, self._mask_options, self.timer)

    def _add_mask(self, mask: ScoredMask | ModelError) -> Iterator[MaskReady]:
        if isinstance(mask, ModelError):
            raise mask
        event = self.answer.add_mask(mask)
        if event is not None:
            yield event

    def is_complete(self, max_new_tokens: int) -> bool:
        """Return whether the answer ends with </s> or has this length."""
        return self.has_ended or len(self.answer.token_ids) >= max_new_tokens

    @property
    def has_ended(self) -> bool:
        """Whether the model has ended the answer, with </s>."""
        ids = self.answer.token_ids
        return len(ids) > 0 and ids[-1] == self._tokenizer.eos_token_id

    def result(self, early_end: EarlyEnd | None, *, is_cut: bool = False) -> Segmentation:
        """Return the answer.

        Args:
            early_end: how it was stopped; None: it was not.
            is_cut: it has no end, for lack of room.
        """
        answer = self.answer
        text_ids = answer.token_ids[: len(answer.token_ids) - answer.repeated_count]
        answer_raw = self._tokenizer.decode(text_ids, skip_special_tokens=True)
        return answer.result(answer_raw, self.timer.seconds, early_end, is_cut=is_cut)
