# SPDX-License-Identifier: Apache-2.0
"""A vision-language model that points, and SAM 2 that cuts, as a Backend.

The model writes where objects are; SAM 2 makes the mask of an object as soon as its JSON is
complete. An answer that is not what the model's profile asks for has status FAILED and its text.

Threads: one thread at a time calls a VlmBackend. Another thread may set `cancel` meanwhile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lisa_ros.errors import ModelError, SettingsError, UnreachableError
from lisa_ros.model.cache_use import CacheUse
from lisa_ros.model.device import resolve_device
from lisa_ros.model.image_processing import check_rgb
from lisa_ros.model.limits import Limits
from lisa_ros.model.origin import Origin, is_hub_id
from lisa_ros.model.prefix_cache import DEFAULT_CACHE_BYTES
from lisa_ros.model.quantization import check_precision
from lisa_ros.model.sam2 import Sam2, Sam2Mask
from lisa_ros.model.transformers_folder import read_model_type
from lisa_ros.perception.answer_builder import AnswerBuilder
from lisa_ros.perception.answer_phrases import labelled_name
from lisa_ros.perception.backend import (
    Cancellation,
    Capabilities,
    InferenceOptions,
    LoadOptions,
    Query,
    check_query,
)
from lisa_ros.perception.image_encoder import StageTimer
from lisa_ros.perception.mask_decoder import ScoredMask
from lisa_ros.perception.mask_refinement import refine_mask_logits
from lisa_ros.perception.model_source import limits_of, origin_of, segmenter_folder
from lisa_ros.perception.other_object import excluded_masks
from lisa_ros.perception.sam2_encoder import Sam2Encoder
from lisa_ros.perception.stopping import Deadline, EarlyEnd, StopCondition
from lisa_ros.perception.verification import verified_events
from lisa_ros.perception.vlm_reading import VlmReading, token_number
from lisa_ros.perception.yes_no import YesNo, YesNoWords, yes_no_events
from lisa_ros.results import Done, Event, ScoreFeatures, Segmentation, Status, Token
from lisa_ros.vlm.answer_parsing import AnswerError, AnswerParser, LocatedObject
from lisa_ros.vlm.pointing_model import PointingModel, PreparedPrompt, WordToken
from lisa_ros.vlm.profiles import choose_profile
from lisa_ros.vlm.qwen_vl import QwenVL

_MIN_ANSWER_TOKENS = 64  # positions that a prompt leaves free for the answer [tokens]
_YES_NO = YesNoWords()


class VlmBackend:
    """A loaded vision-language model with SAM 2; keeps prompts and features of some images."""

    def __init__(
        self,
        vlm: PointingModel,
        sam2: Sam2,
        precision: str = 'fp32',
        notices: tuple[str, ...] = (),
    ):
        """Wrap loaded models; `load` reads them from files.

        Args:
            vlm: points at objects.
            sam2: makes their masks.
            precision: of the vision-language model's weights.
            notices: what a user should know about it.
        """
        self._vlm, self._sam2, self._precision = vlm, sam2, precision
        self._notices = notices
        self._profile = vlm.profile
        self._encoder = Sam2Encoder(sam2)

    @classmethod
    def load(cls, model: str, options: LoadOptions) -> VlmBackend:
        """Load a vision-language model and SAM 2.

        Args:
            model: folder or hub id of a Qwen2.5-VL or Qwen3-VL, also of one fine-tuned to point;
                with `vlm_url` its name at that server, and no file of it is read.
            options: defaults for None: device: the GPU if there is one; precision: bf16 on a GPU,
                fp32 on a CPU (SAM 2 is always fp32); template: the profile by the model's name
                and type; segmenter_model: `model_source.DEFAULT_SEGMENTER`, which is downloaded if
                `model` is a hub id or `allow_download` is set.

        Raises:
            CheckpointError: the files are not such models, or are incomplete.
            SettingsError: the device, the precision or the template is not available, or the
                coordinates of a server's model are not those of its profile.
            ModelError: a server refuses a request, or its answer cannot be read.
        """
        if options.threads:
            torch.set_num_threads(options.threads)
        device = resolve_device(options.device)
        origin, limits = origin_of(options), limits_of(options)
        if options.vlm_url:
            return cls._load_remote(model, options, device, origin, limits)
        precision = options.precision or ('bf16' if device.type == 'cuda' else 'fp32')
        check_precision(precision, device)
        folder = origin.model_folder(model)
        profile = choose_profile(model, read_model_type(folder), options.template)
        may_download = options.allow_download or is_hub_id(model)
        sam2_folder = segmenter_folder(options.segmenter_model, origin, may_download)
        sam2 = Sam2.load(sam2_folder, device, limits)
        cache_bytes = DEFAULT_CACHE_BYTES if options.cache_bytes is None else options.cache_bytes
        vlm = QwenVL.load(folder, profile, device, precision, limits, cache_bytes)
        return cls(vlm, sam2, precision)

    @classmethod
    def _load_remote(
        cls,
        model: str,
        options: LoadOptions,
        device: torch.device,
        origin: Origin,
        limits: Limits,
    ) -> VlmBackend:
        """Load SAM 2, and connect to the server of the vision-language model; see `load`."""
        from lisa_ros.vlm.remote_vlm import RemoteVlm  # with an HTTP client

        if options.sha256:
            raise SettingsError(
                'model_sha256 is that of a vision-language model in files, and this one runs at '
                'vlm_url: leave it empty'
            )
        folder = segmenter_folder(options.segmenter_model, origin, options.allow_download)
        sam2 = Sam2.load(folder, device, limits)
        vlm = RemoteVlm.connect(
            options.vlm_url, model, options.template, options.api_key_env, options.api_key_file
        )
        return cls(vlm, sam2, '', vlm.notices)

    @property
    def device(self) -> str:
        """The torch device of the models, such as "cuda:0", and the address of a server."""
        return ', '.join(dict.fromkeys((str(self._sam2.device), self._vlm.device)))

    @property
    def precision(self) -> str:
        """The number format of the vision-language model: fp32, bf16, fp16, int8 or nf4.

        Empty if a server runs it.
        """
        return self._precision

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know about the server; see `ReportsNotices`."""
        return self._notices

    @property
    def capabilities(self) -> Capabilities:
        """What the profile of the model says; it makes a mask of each object."""
        return Capabilities(
            explains=self._profile.explains,
            denies=self._profile.denies,
            instances=True,
            dialogue=self._profile.dialogue,
            yes_no=True,
        )

    @property
    def cache_use(self) -> CacheUse | None:
        """What is kept of earlier prompts; None: a server runs the model."""
        return self._vlm.cache_use

    def encode_images(self, images: Sequence[np.ndarray]) -> None:
        """Encode several (H, W, 3) uint8 RGB images with SAM 2 at once; kept until the next call.

        Raises:
            ImageError: an image has another shape or type.
            ModelError: the features are not finite.
        """
        self._encoder.encode_batch(images)

    def clear_cache(self) -> None:
        """Drop SAM 2's features of all images, and earlier prompts."""
        self._encoder.clear()
        self._vlm.clear_cache()

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
        for people is the model's reasoning, or the names of the objects. A model that was not
        trained with several questions does not read earlier turns; but no answer about "the other
        one" has a mask of an object that was shown before.
        With `query.yes_no` the question is asked in its own words, without the profile's prompt,
        and no token is generated. Earlier yes/no questions are in no prompt.
        """
        check_rgb(image)
        stop = StopCondition(cancel, Deadline(options.answer_timeout))
        turns = query.dialogue.turns
        if query.yes_no:
            check_query(query.text)
            request = f'{query.text.strip()} {_YES_NO.request}'
            prompt = self._vlm.prepare_request(image, request, turns)
            return self._yes_no_events(query.text, image.shape[:2], prompt, stop)
        min_answer_tokens = min(_MIN_ANSWER_TOKENS, options.max_new_tokens)
        inputs = self._vlm.prepare(image, query.text, min_answer_tokens, turns)
        events = self._events(image, query, inputs, options, stop)
        if not options.verify:
            return events
        threshold = options.confidence_threshold or 0.0
        return verified_events(events, image, query.text, self._choose, threshold, stop)

    def _choose(
        self, image: np.ndarray, request: str, choices: Sequence[str], stop: StopCondition
    ) -> Sequence[float]:
        """Return how probable each choice is as the answer to a request, see `verification`."""
        prompt = self._vlm.prepare_request(image, request)
        return self._vlm.choice_probabilities(prompt, choices, stop).values

    def _yes_no_events(
        self, question: str, shape: tuple[int, int], prompt: PreparedPrompt, stop: StopCondition
    ) -> Iterator[Event]:
        """Compare how the answer could begin; no further token is generated.

        Raises:
            ModelError: a server does not give the probabilities of both.
        """
        timer = StageTimer(self._sam2.device)
        words, count = (*_YES_NO.yes, *_YES_NO.no), len(_YES_NO.yes)
        answer, end = YesNo(0.0, 0.0), None
        try:
            with timer.stage('prompt'):
                choice = self._vlm.choice_probabilities(prompt, words, stop)
        except UnreachableError as error:
            end = EarlyEnd(Status.UNREACHABLE, str(error))
        else:
            if not choice.is_measured:
                raise ModelError(
                    f'{self._vlm.device} gives no probabilities of tokens (top_logprobs), or not '
                    'by their text (vLLM: leave out --return-tokens-as-token-ids), which a yes/no '
                    'question needs: ask for words'
                )
            answer = YesNo(sum(choice.values[:count]), sum(choice.values[count:]))
        end = end or stop.early_end
        yield from yes_no_events(question, shape, answer, timer.seconds, end)

    def _events(
        self,
        image: np.ndarray,
        query: Query,
        inputs: PreparedPrompt,
        options: InferenceOptions,
        stop: StopCondition,
    ) -> Iterator[Event]:
        height, width = image.shape[:2]
        timer = StageTimer(self._sam2.device)
        answer = AnswerBuilder(
            query.text,
            (height, width),
            options.confidence_threshold or 0.0,
            excluded_masks(query, (height, width)),
        )
        parser = AnswerParser(self._profile, inputs.resized, (width, height))
        reading = VlmReading(parser, self._profile.stop)
        max_new_tokens = min(options.max_new_tokens, self._vlm.max_answer_tokens(inputs))
        failure: EarlyEnd | None = None
        try:
            for token in self._tokens(inputs, max_new_tokens, stop, timer):
                answer.token_ids.append(token_number(token))
                yield Token(token.text, token.token_id)
                for located, words_prob in reading.push(token):
                    if answer.is_full:
                        break
                    mask = self._mask(image, located, words_prob, bool(options.refine), timer)
                    event = answer.add_mask(mask, labelled_name(located.label, query.text))
                    if event is not None:
                        yield event
                if reading.is_over or answer.repeated_count:
                    break
        except UnreachableError as error:
            failure = EarlyEnd(Status.UNREACHABLE, str(error))
        early_end = None if reading.is_over else failure or stop.early_end
        at_limit = reading.is_cut or len(answer.token_ids) >= max_new_tokens
        is_cut = not reading.is_over and at_limit
        hint = f' (max_new_tokens: {max_new_tokens})' if is_cut else ''
        result = answer.result(parser.text, timer.seconds, early_end)
        if not reading.are_tokens:
            result = dataclasses.replace(result, token_count=None)
        if early_end is None and result.status is not Status.REPEATED:
            reading.finish()
        yield Done(_readable(result, parser, reading.error, hint))

    def _tokens(
        self,
        inputs: PreparedPrompt,
        max_new_tokens: int,
        stop: StopCondition,
        timer: StageTimer,
    ) -> Iterator[WordToken]:
        """Yield the answer's tokens; the timer gets the stages "prompt" and "tokens"."""
        tokens = self._vlm.generate(inputs, max_new_tokens, stop)
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
        features = self._encoder.encode(image, timer)
        with timer.stage('masks'):
            mask = self._sam2.decode(features, located.box, located.points)
        logits = mask.logits
        if refine:
            with timer.stage('refine'):
                cell = 4 * max(logits.shape) / self._sam2.side
                logits = refine_mask_logits(image, logits, cell)
        return ScoredMask(logits, *_score(mask, words_prob))


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
    if result.status is Status.NOT_FOUND and parser.objects and not result.reason:
        count = len(parser.objects)
        reason = f'the model points at {count} object(s), SAM 2 made no mask that is sure enough'
        result = dataclasses.replace(result, reason=reason)
    labels = dict.fromkeys(located.label for located in parser.objects if located.label)
    short = 'Here.' if len(result.masks) else ''
    return dataclasses.replace(
        result, answer=parser.explanation or ', '.join(labels) or short, details=None
    )
