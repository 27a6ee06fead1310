# SPDX-License-Identifier: Apache-2.0
"""A vision-language model that points, and SAM 2 that cuts, as a Backend.

The model writes where objects are; SAM 2 makes the mask of an object as soon as its JSON is
complete. An answer that is not what the model's profile asks for has status FAILED and its text.

Threads: one thread at a time calls a VlmBackend. Another thread may set `cancel` meanwhile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lisa_ros.errors import CheckpointError, QueryError
from lisa_ros.model.device import resolve_device
from lisa_ros.model.image_processing import check_rgb
from lisa_ros.model.origin import Origin, cached_folder, is_hub_id
from lisa_ros.model.quantization import check_precision
from lisa_ros.model.sam2 import Sam2, Sam2Features, Sam2Mask
from lisa_ros.model.transformers_folder import read_model_type
from lisa_ros.perception.answer_builder import AnswerBuilder
from lisa_ros.perception.backend import (
    Cancellation,
    Capabilities,
    InferenceOptions,
    LoadOptions,
    Query,
)
from lisa_ros.perception.image_encoder import StageTimer, image_key
from lisa_ros.perception.mask_decoder import ScoredMask
from lisa_ros.perception.mask_refinement import refine_mask_logits
from lisa_ros.perception.model_source import limits_of, origin_of
from lisa_ros.perception.stopping import Deadline, StopCondition
from lisa_ros.perception.verification import verified_events
from lisa_ros.perception.yes_no import YesNo, YesNoWords, yes_no_events
from lisa_ros.results import Done, Event, ScoreFeatures, Segmentation, Status, Token
from lisa_ros.vlm.answer_parsing import AnswerError, AnswerParser, LocatedObject
from lisa_ros.vlm.profiles import choose_profile
from lisa_ros.vlm.qwen_vl import QwenInputs, QwenVL, WordToken

DEFAULT_SEGMENTER = 'facebook/sam2.1-hiera-large'
_MIN_ANSWER_TOKENS = 64  # positions that a prompt leaves free for the answer [tokens]
_YES_NO = YesNoWords()


class VlmBackend:
    """A loaded vision-language model with SAM 2. It keeps SAM 2's features of the last image."""

    def __init__(self, vlm: QwenVL, sam2: Sam2, precision: str = 'fp32'):
        """Wrap loaded models; `load` reads them from files.

        Args:
            vlm: points at objects.
            sam2: makes their masks.
            precision: of the vision-language model's weights.
        """
        self._vlm, self._sam2, self._precision = vlm, sam2, precision
        self._profile = vlm.profile
        self._features: tuple[tuple, Sam2Features] | None = None  # of an image, with its key

    @classmethod
    def load(cls, model: str, options: LoadOptions) -> VlmBackend:
        """Load a vision-language model and SAM 2.

        Args:
            model: folder or hub id of a Qwen2.5-VL or Qwen3-VL, also of one fine-tuned to point.
            options: defaults for None: device: the GPU if there is one; precision: bf16 on a GPU,
                fp32 on a CPU (SAM 2 is always fp32); template: the profile by the model's name
                and type; segmenter_model: DEFAULT_SEGMENTER, which is downloaded if `model` is a
                hub id or `allow_download` is set.

        Raises:
            CheckpointError: the files are not such models, or are incomplete.
            SettingsError: the device, the precision or the template is not available.
        """
        if options.threads:
            torch.set_num_threads(options.threads)
        device = resolve_device(options.device)
        precision = options.precision or ('bf16' if device.type == 'cuda' else 'fp32')
        check_precision(precision, device)
        origin, limits = origin_of(options), limits_of(options)
        folder = origin.model_folder(model)
        profile = choose_profile(model, read_model_type(folder), options.template)
        may_download = options.allow_download or is_hub_id(model)
        sam2_folder = _segmenter_folder(options.segmenter_model, origin, may_download)
        sam2 = Sam2.load(sam2_folder, device, limits)
        return cls(QwenVL.load(folder, profile, device, precision, limits), sam2, precision)

    @property
    def device(self) -> str:
        """The torch device of the models, such as "cuda:0"."""
        return str(self._vlm.device)

    @property
    def precision(self) -> str:
        """The number format of the vision-language model: fp32, bf16, fp16, int8 or nf4."""
        return self._precision

    @property
    def capabilities(self) -> Capabilities:
        """What the profile of the model says; it makes a mask of each object."""
        return Capabilities(
            explains=self._profile.explains,
            denies=self._profile.denies,
            instances=True,
            yes_no=True,
        )

    def encode_images(self, images: Sequence[np.ndarray]) -> None:
        """Do nothing: SAM 2 encodes an image when an answer has its first object."""

    def clear_cache(self) -> None:
        """Drop SAM 2's features of the last image."""
        self._features = None

    def stream(
        self,
        image: np.ndarray,
        query: Query,
        options: InferenceOptions,
        cancel: Cancellation,
    ) -> Iterator[Event]:
        """Answer a query; see `Backend.stream`.

        A MaskReady directly follows the Token that completes its object; with `options.verify`,
        the last Token, because the model is asked about all masks first. The text of the answer
        for people is the model's reasoning, or the names of the objects. Earlier turns are not
        read: these models are trained with one question. With `query.yes_no` the question is asked
        in its own words, without the profile's prompt, and no token is generated.
        """
        check_rgb(image)
        if query.yes_no:
            question = self._yes_no_inputs(image, query.text)
            return self._yes_no_events(image, query.text, question, options, cancel)
        min_answer_tokens = min(_MIN_ANSWER_TOKENS, options.max_new_tokens)
        inputs = self._vlm.prepare(image, query.text, min_answer_tokens)
        events = self._events(image, query, inputs, options, cancel)
        if not options.verify:
            return events
        return verified_events(
            events,
            image,
            query.text,
            self._vlm.choice_probabilities,
            options.confidence_threshold or 0.0,
            cancel,
        )

    def _yes_no_inputs(self, image: np.ndarray, question: str) -> QwenInputs:
        """Return the prompt of a yes/no question.

        Raises:
            QueryError: it is empty or too long.
        """
        if not question.strip():
            raise QueryError('the question is empty: ask one, as in "is the door open?"')
        return self._vlm.prepare_request(image, f'{question.strip()} {_YES_NO.request}')

    def _yes_no_events(
        self,
        image: np.ndarray,
        question: str,
        inputs: QwenInputs,
        options: InferenceOptions,
        cancel: Cancellation,
    ) -> Iterator[Event]:
        """Read the prompt, and compare how the answer could begin; no token is generated."""
        timer = StageTimer(self._vlm.device)
        stop = StopCondition(cancel, Deadline(options.answer_timeout))
        words = (*_YES_NO.yes, *_YES_NO.no)
        with timer.stage('prompt'):
            probabilities = self._vlm.first_token_probabilities(inputs, words)
        count = len(_YES_NO.yes)
        answer = YesNo(sum(probabilities[:count]), sum(probabilities[count:]))
        yield from yes_no_events(question, image.shape[:2], answer, timer.seconds, stop.early_end)

    def _events(
        self,
        image: np.ndarray,
        query: Query,
        inputs: QwenInputs,
        options: InferenceOptions,
        cancel: Cancellation,
    ) -> Iterator[Event]:
        height, width = image.shape[:2]
        timer = StageTimer(self._vlm.device)
        stop = StopCondition(cancel, Deadline(options.answer_timeout))
        answer = AnswerBuilder(query.text, (height, width), options.confidence_threshold or 0.0)
        parser = AnswerParser(self._profile, inputs.resized, (width, height))
        reading = _Reading(parser, self._profile.stop)
        max_new_tokens = min(
            options.max_new_tokens,
            self._profile.max_new_tokens,
            self._vlm.max_positions - inputs.input_ids.shape[1],
        )
        for token in self._tokens(inputs, max_new_tokens, stop, timer):
            answer.token_ids.append(token.token_id)
            yield Token(token.text, token.token_id)
            for located, words_prob in reading.push(token):
                if answer.is_full:
                    break
                mask = self._mask(image, located, words_prob, bool(options.refine), timer)
                event = answer.add_mask(mask)
                if event is not None:
                    yield event
            if reading.is_over or answer.repeated_count:
                break
        early_end = None if reading.is_over else stop.early_end
        is_cut = not reading.is_over and len(answer.token_ids) >= max_new_tokens
        hint = f' (max_new_tokens: {max_new_tokens})' if is_cut else ''
        result = answer.result(parser.text, timer.seconds, early_end)
        if early_end is None and result.status is not Status.REPEATED:
            reading.finish()
        yield Done(_readable(result, parser, reading.error, hint))

    def _tokens(
        self,
        inputs: QwenInputs,
        max_new_tokens: int,
        stop: Cancellation,
        timer: StageTimer,
    ) -> Iterator[WordToken]:
        """Yield the answer's tokens; the timer gets the stages "prompt" and "tokens"."""
        tokens = self._vlm.generate(inputs, max_new_tokens, stop.is_set)
        stage = 'prompt'
        while True:
            with timer.stage(stage):
                token = next(tokens, None)
            if token is None:
                return
            stage = 'tokens'
            yield token

    def _mask(
        self,
        image: np.ndarray,
        located: LocatedObject,
        words_prob: float,
        refine: bool,
        timer: StageTimer,
    ) -> ScoredMask:
        """Return the mask of an object; the timer gets the stages "sam", "masks" and "refine"."""
        key = image_key(image)
        if self._features is None or self._features[0] != key:
            with timer.stage('sam'):
                self._features = (key, self._sam2.encode(image))
        with timer.stage('masks'):
            mask = self._sam2.decode(self._features[1], located.box, located.points)
        logits = mask.logits
        if refine:
            with timer.stage('refine'):
                cell = 4 * max(logits.shape) / self._sam2.side
                logits = refine_mask_logits(image, logits, cell)
        return ScoredMask(logits, *_score(mask, words_prob))


@dataclass
class _Reading:
    """An answer while its tokens arrive."""

    parser: AnswerParser
    stop: str  # text that ends the answer; '': none
    has_ended: bool = False  # with this text, or with a token that ends a turn
    error: AnswerError | None = None
    words_prob: float = 1.0  # of the words since the last object, without digits

    @property
    def is_over(self) -> bool:
        """Whether no further token is needed."""
        return self.has_ended or self.error is not None

    def push(self, token: WordToken) -> list[tuple[LocatedObject, float]]:
        """Add a token; return the objects that it completes, and the probability of their words.

        Digits do not count: another number near this one may be as right.
        """
        if not token.text.strip().isdigit():
            self.words_prob *= token.probability
        try:
            located = self.parser.push(token.text)
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


def _segmenter_folder(name: str | Path | None, origin: Origin, may_download: bool) -> Path:
    """Return the folder of SAM 2.

    Args:
        name: the user's choice, which may be downloaded; None: DEFAULT_SEGMENTER.
        origin: of the vision-language model; its lock file is that of SAM 2, too.
        may_download: the default one.

    Raises:
        CheckpointError: there is no such model, or the default one may not be downloaded.
    """
    if name is None and not may_download and cached_folder(DEFAULT_SEGMENTER) is None:
        raise CheckpointError(
            f'segmenter_model is not set, and its default {DEFAULT_SEGMENTER} is not in the local '
            'cache and is not downloaded without permission: give a folder with segmenter_model '
            '(--segmenter-model), or allow the download with allow_download:=true '
            '(--allow-download)'
        )
    # the checksum is that of the vision-language model
    return dataclasses.replace(origin, sha256=None).model_folder(name or DEFAULT_SEGMENTER)


def _score(mask: Sam2Mask, words_prob: float) -> tuple[float, ScoreFeatures]:
    """Return the score of a mask, and what it is computed from.

    The score is the product of three probabilities: that the words name an object, that it is in
    the image, and the mask's IoU, as SAM 2 predicts them. It ranks masks.
    """
    inside = mask.logits[mask.logits > 0]
    mean_mask_prob = float((1 / (1 + np.exp(-inside))).mean()) if len(inside) else 0.0
    features = ScoreFeatures(words_prob, mask.presence, mean_mask_prob, mask.predicted_iou)
    score = words_prob * mask.presence * mask.predicted_iou
    return (score if len(inside) else 0.0), features


def _readable(
    result: Segmentation, parser: AnswerParser, error: AnswerError | None, hint: str
) -> Segmentation:
    """Return a result with the text for people; with status FAILED and all text if it is wrong."""
    if error is not None:
        return dataclasses.replace(
            result,
            status=Status.FAILED,
            reason=f'the answer of the model cannot be used: {error}{hint}',
            answer=' '.join(parser.text.split()),
            details=None,
        )
    if result.status is Status.NOT_FOUND and parser.objects:
        count = len(parser.objects)
        reason = f'the model points at {count} object(s), SAM 2 made no mask that is sure enough'
        result = dataclasses.replace(result, reason=reason)
    labels = dict.fromkeys(located.label for located in parser.objects if located.label)
    short = 'Here.' if len(result.masks) else ''
    return dataclasses.replace(
        result, answer=parser.explanation or ', '.join(labels) or short, details=None
    )
