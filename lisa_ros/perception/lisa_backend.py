# SPDX-License-Identifier: Apache-2.0
"""LISA as a Backend: prompt, generated tokens, and a mask for each [SEG].

Threads: one thread at a time calls a LisaBackend. Another thread may set `cancel` meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lisa_ros.errors import LisaError, ModelError, QueryError
from lisa_ros.model import checkpoint, generation
from lisa_ros.model.cache_use import CacheUse
from lisa_ros.model.captured_decoding import captured_decoder
from lisa_ros.model.device import resolve_device
from lisa_ros.model.image_preparation import image_preparation
from lisa_ros.model.image_processing import ClipPreprocessing, check_rgb
from lisa_ros.model.language_model import LanguageModel
from lisa_ros.model.lisa import LISA
from lisa_ros.model.phrase_probability import phrase_probabilities
from lisa_ros.model.point_prompts import PointRule
from lisa_ros.model.prefix_cache import DEFAULT_CACHE_BYTES
from lisa_ros.model.quantization import weights_precision
from lisa_ros.model.registry import resolve_bundled_model
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception.answer_builder import AnswerBuilder
from lisa_ros.perception.backend import (
    AnswerStyle,
    BatchRequest,
    Cancellation,
    Capabilities,
    InferenceOptions,
    LoadOptions,
    Query,
    ScoreKind,
    check_query,
)
from lisa_ros.perception.image_encoder import EncodedImage, ImageEncoder, StageTimer
from lisa_ros.perception.lisa_batch import BatchRow, RowEnd, answer_rows
from lisa_ros.perception.lisa_prompts import PromptReader
from lisa_ros.perception.mask_decoder import MaskDecoder, MaskOptions, SegToken
from lisa_ros.perception.model_source import limits_of, origin_of
from lisa_ros.perception.other_object import excluded_masks
from lisa_ros.perception.prompts import answer_ids, named_template, training_ids
from lisa_ros.perception.reasons import with_reason
from lisa_ros.perception.reply import Reply
from lisa_ros.perception.stopping import Deadline, EarlyEnd, StopCondition
from lisa_ros.perception.yes_no import YesNo, yes_no_events
from lisa_ros.results import Done, Event, Segmentation, Turn


@dataclass(frozen=True)
class _Asked:
    """A query as a prompt."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    text: str  # of the query, with the request for a reason
    ids: list[int]  # of the prompt
    answer: AnswerBuilder  # empty


class LisaBackend:
    """A loaded LISA. It keeps features of the newest images and of `encode_images`."""

    def __init__(
        self,
        model: LISA,
        tokenizer: Tokenizer,
        clip_preprocessing: ClipPreprocessing,
        template: str | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        usual_replies: Sequence[str] = (),
        language_model: LanguageModel | None = None,
    ):
        """Wrap a loaded model; `load` reads one from files.

        Args:
            model: in eval mode; it runs on the device where its weights are.
            tokenizer: the model's.
            clip_preprocessing: of the model's CLIP.
            template: conversation template (a name in prompts.TEMPLATES); None: the model's own.
            cache_bytes: memory for keys and values of earlier prompts; 0: prompts are read whole.
            usual_replies: of the model, the most usual first; empty: those of the released LISA.
            language_model: runs the language model of `model`; None: a LanguageModel.

        Raises:
            SettingsError: there is no such template.
        """
        self.model, self.tokenizer = model, tokenizer
        self.clip_preprocessing = clip_preprocessing
        self.template = template or model.config.template
        named_template(self.template)  # fails now, not at the first query
        self._language_model = language_model or LanguageModel(model.llm)
        # int8 looks for outliers on the host, which a captured step cannot do
        is_captured = self.precision != 'int8'
        self._decoder = captured_decoder(self._language_model) if is_captured else None
        self._prompts = PromptReader(
            model,
            tokenizer,
            self.template,
            self._language_model,
            cache_bytes=cache_bytes,
            usual_replies=usual_replies,
        )
        preparation = image_preparation(
            clip_preprocessing, model.config.sam_size, self._language_model.device
        )
        self.encoder = ImageEncoder(model, preparation)
        self._mask_decoder = MaskDecoder(model, self.encoder)

    @classmethod
    def load(cls, model: str, options: LoadOptions) -> LisaBackend:
        """Load a LISA.

        Args:
            model: "lisa-tabletop", a folder (ours or a released LISA), or a hub id.
            options: defaults for None: device: the GPU if there is one; precision: bf16 on a GPU,
                fp32 on a CPU; vision_tower: the one that the checkpoint names; template: the
                checkpoint's. `sam` fills in weights of SAM that a released LISA lacks (LISA does
                not train SAM's vision encoder, so files may omit it).

        Raises:
            CheckpointError: the files are not a LISA, or are incomplete.
            SettingsError: the device, the precision or the template is not available.
        """
        if options.threads:
            torch.set_num_threads(options.threads)
        device, cache_bytes = resolve_device(options.device), options.cache_bytes
        loaded = checkpoint.load(
            resolve_bundled_model(model),
            vision_tower=options.vision_tower,
            sam=options.sam,
            template=options.template,
            device=device,
            precision=options.precision or ('bf16' if device.type == 'cuda' else 'fp32'),
            origin=origin_of(options),
            limits=limits_of(options),
        )
        return cls(
            loaded.model,
            loaded.tokenizer,
            loaded.clip_preprocessing,
            cache_bytes=DEFAULT_CACHE_BYTES if cache_bytes is None else cache_bytes,
            usual_replies=loaded.usual_replies,
        )

    @property
    def device(self) -> str:
        """The torch device of the model, such as "cuda:0"."""
        return str(self.encoder.device)

    @property
    def precision(self) -> str:
        """The number format of most weights: fp32, bf16, fp16, int8 or nf4."""
        return weights_precision(self.model)

    @property
    def input_side(self) -> int | None:
        """Side of the larger input of SAM and CLIP [px]; None: masks are refined in the image."""
        config = self.model.config
        return None if config.refine else max(config.sam_size, config.clip.image_size)

    @property
    def capabilities(self) -> Capabilities:
        """A calibrated LISA gives probabilities as scores, a released one only a ranking."""
        calibrated = bool(self.model.config.calibration)
        return Capabilities(
            explains=True,
            denies=True,
            instances='instances' in self.model.config.answer_styles,
            dialogue=True,
            yes_no=True,
            scores=ScoreKind.CALIBRATED if calibrated else ScoreKind.UNCALIBRATED,
            batches=self.model.config.point_rule is None,
        )

    @property
    def cache_use(self) -> CacheUse:
        """What is kept of earlier prompts."""
        return self._prompts.cache_use

    def encode_images(self, images: Sequence[np.ndarray]) -> None:
        """Encode several (H, W, 3) uint8 RGB images at once; kept until the next call.

        Raises:
            ImageError: an image has another shape or type.
        """
        self.encoder.encode_batch(images)

    def clear_cache(self) -> None:
        """Drop the features of all images, earlier prompts and replies."""
        self.encoder.clear()
        self._prompts.clear()

    def stream(
        self,
        image: np.ndarray,
        query: Query,
        options: InferenceOptions,
        cancel: Cancellation,
    ) -> Iterator[Event]:
        """Answer a query; see `Backend.stream`.

        A MaskReady directly follows the Token of its [SEG], before the text after it. A [SEG] has
        no MaskReady if its score is below the threshold, if the answer has `masks.MAX_MASKS` masks
        already, or if the query asks for "the other one" and the mask shows an object of the
        dialogue. `options.answer_style` appends the words of the model's training to the query,
        and `Query.explain` its request for a reason; if the answer has no reason all the same, a
        model with a `reason_question` is asked that. With `Query.yes_no` no token is generated.
        Errors are raised by this call, not by the iteration, except for a ModelError: the model
        computed NaN or infinity.
        """
        asked = self._checked(image, query, options)
        if query.yes_no:
            return self._yes_no_events(asked, options, cancel)
        events = self._events(asked, options, cancel)
        explain = query.explain or options.answer_style is AnswerStyle.EXPLAIN
        if explain and self.model.config.reason_question:
            reason_options = dataclasses.replace(options, answer_style=AnswerStyle.AUTO)
            return with_reason(
                events,
                query,
                self.model.config.reason_question,
                reason_options,
                lambda further, limits: _last_result(self.stream(image, further, limits, cancel)),
            )
        return events

    def _checked(self, image: np.ndarray, query: Query, options: InferenceOptions) -> _Asked:
        """Return a query as a prompt.

        Raises:
            ImageError: the image is not (H, W, 3) uint8.
            QueryError: the text is empty or too long.
        """
        check_rgb(image)
        check_query(query.text)
        request = self._style_request(query, options)
        text = f'{query.text} {request}' if request else query.text
        ids = self._prompts.ids(text, query, options)
        threshold = options.confidence_threshold
        answer = AnswerBuilder(
            query.text,
            image.shape[:2],
            self.model.config.confidence_threshold if threshold is None else threshold,
            excluded_masks(query, image.shape[:2]),
        )
        return _Asked(image, text, ids, answer)

    def _style_request(self, query: Query, options: InferenceOptions) -> str:
        """Return what the model was trained with for a style of answer; '': nothing."""
        config, style = self.model.config, options.answer_style
        if query.yes_no:
            return named_template(self.template).yes_no.request
        if query.explain or style is AnswerStyle.EXPLAIN:
            return config.explain
        return config.answer_styles.get(style.value, '')

    def stream_batch(
        self, requests: Sequence[BatchRequest], options: InferenceOptions
    ) -> Iterator[tuple[int, Event]]:
        """Answer several queries at once; see `AnswersBatches`.

        Images, prompts, tokens and masks go through the model together. The `timings` of an answer
        have its share of that. Left to be asked alone are yes/no questions, queries whose reason
        is a further turn, and those whose masks come from points or from typed [SEG]; and what
        else there is, if that is a single query.
        """
        deadline = Deadline(options.answer_timeout)
        queries, errors = self._batch_queries(requests, options)
        if len(queries) == 1:
            queries = {}
        replies, encoding_errors = self._batch_replies(queries, options)
        for number, error in (errors | encoding_errors).items():
            yield number, requests[number].failed(error)
        if not replies:
            return
        numbers = list(replies)
        stops = [StopCondition(requests[number].cancel, deadline) for number in numbers]
        queries = {number: queries[number] for number in numbers}
        rows = self._batch_rows(queries, replies, stops, options)
        stop_id = self.tokenizer.eos_token_id
        for place, event in answer_rows(self._language_model, self._mask_decoder, rows, stop_id):
            number = numbers[place]
            if not isinstance(event, RowEnd):
                yield number, event
            elif event.error is not None:
                yield number, requests[number].failed(event.error)
            else:
                yield number, self._row_result(rows[place], queries[number].text, options)

    def _batch_queries(
        self, requests: Sequence[BatchRequest], options: InferenceOptions
    ) -> tuple[dict[int, _Asked], dict[int, LisaError]]:
        """Return the prompts of a batch by the numbers of their requests, and what has none."""
        queries, errors = {}, {}
        for number, request in enumerate(requests):
            if self._is_alone(request.query, options):
                continue
            try:
                queries[number] = self._checked(request.image, request.query, options)
            except LisaError as error:
                errors[number] = error
        return queries, errors

    def _batch_replies(
        self, queries: dict[int, _Asked], options: InferenceOptions
    ) -> tuple[dict[int, Reply], dict[int, LisaError]]:
        """Encode the images of a batch; return empty replies, and images that are not finite."""
        replies, errors = {}, {}
        if queries:
            self.encoder.encode_batch([query.image for query in queries.values()])
        for number, query in queries.items():
            timer = StageTimer(self.encoder.device)
            try:
                encoded = self.encoder.encode(query.image, timer)
            except ModelError as error:
                errors[number] = error
            else:
                replies[number] = self._reply(encoded, options, query.answer, timer)
        return replies, errors

    def _batch_rows(
        self,
        queries: dict[int, _Asked],
        replies: dict[int, Reply],
        stops: Sequence[StopCondition],
        options: InferenceOptions,
    ) -> list[BatchRow]:
        """Read the beginnings of the prompts; return the rows in the order of the replies."""
        timer, images = StageTimer(self.encoder.device), [r.encoded for r in replies.values()]
        texts, ids = zip(*((asked.text, asked.ids) for asked in queries.values()), strict=True)
        with timer.stage('prompt'):
            prompts = self._prompts.read_beginnings(texts, ids, images, options)
        for reply in replies.values():
            reply.timer.add({'prompt': timer.seconds['prompt'] / len(replies)})
        return list(map(BatchRow, prompts, replies.values(), stops))

    def _is_alone(self, query: Query, options: InferenceOptions) -> bool:
        """Return whether a query needs what a batch has not: rare, and not worth it."""
        explain = query.explain or options.answer_style is AnswerStyle.EXPLAIN
        has_further_turn = explain and bool(self.model.config.reason_question)
        has_points = self._point_rule(options) is not None
        return query.yes_no or has_further_turn or has_points or options.typed_specials

    def _row_result(self, row: BatchRow, text: str, options: InferenceOptions) -> Done:
        """Return the result of a row; a complete answer is kept as a draft."""
        is_complete = row.reply.is_complete(options.max_new_tokens)
        if is_complete:
            self._prompts.keep_reply(text, row.reply.answer.token_ids)
        return _done(row.reply, None if is_complete else row.stop.early_end)

    def teacher_forced(
        self,
        image: np.ndarray,
        text: str,
        answer_raw: str = '[SEG].',
        options: InferenceOptions | None = None,
    ) -> Segmentation:
        """Return the masks of a given answer, as the original's evaluation does.

        The model generates no text. All masks are returned, whatever their scores; the scores
        depend on the masks alone, not on the text. `stream` returns what a user gets.

        Args:
            image: (H, W, 3) uint8 RGB.
            text: the query.
            answer_raw: the answer, with a [SEG] for each mask.
            options: `typed_specials` and `refine` apply.

        Raises:
            ImageError: the image is not (H, W, 3) uint8.
            QueryError: the text is empty, or text and answer are too long.
        """
        check_rgb(image)
        options = options or InferenceOptions()
        turns = [Turn(text, answer_raw)]
        ids, _ = training_ids(self.tokenizer, self.template, turns, options.typed_specials)
        length = self._prompts.length(ids)
        if length > self._prompts.max_positions:
            raise QueryError(
                f'query and answer take {length} positions, this model has '
                f'{self._prompts.max_positions}: shorten them'
            )
        timer = StageTimer(self.encoder.device)
        answer = AnswerBuilder(text, image.shape[:2], threshold=0.0)
        answer.token_ids.extend(self.tokenizer.encode(answer_raw, parse_special=True))
        encoded = self.encoder.encode(image, timer)
        count = answer.token_ids.count(self.model.config.seg_token_id)
        # Those before the last `count` are [SEG] typed in the query.
        positions = self._prompts.seg_positions(ids)
        positions = positions[len(positions) - count :]
        with timer.stage('prompt'):
            with_points = self._point_rule(options) is not None
            prompt = self._prompts.read(ids, encoded, positions, with_points=with_points)
        reply = self._reply(encoded, options, answer, timer)
        for position in positions:
            list(reply.decode(SegToken(prompt.state(position - 1))))
        result = reply.result(early_end=None)
        return dataclasses.replace(result, token_count=None)  # it was given

    def _events(
        self, asked: _Asked, options: InferenceOptions, cancel: Cancellation
    ) -> Iterator[Event]:
        text, ids, answer = asked.text, asked.ids, asked.answer
        timer = StageTimer(self.encoder.device)
        stop = StopCondition(cancel, Deadline(options.answer_timeout))
        encoded = self.encoder.encode(asked.image, timer)
        self.encoder.start_sam(encoded)
        typed = self._prompts.typed_positions(text, ids) if options.typed_specials else []
        max_new_tokens = self._prompts.room(ids, options)
        with timer.stage('prompt'):
            drafts = self._prompts.drafts(text, max_new_tokens)
            with_points = self._point_rule(options) is not None
            prompt = self._prompts.read(ids, encoded, typed, drafts, max_new_tokens, with_points)
        reply = self._reply(encoded, options, answer, timer)
        for position in typed:
            yield from reply.decode(SegToken(prompt.state(position - 1)))
        with contextlib.closing(self._generate(prompt, max_new_tokens, stop, timer)) as steps:
            for step in steps:
                yield from reply.push(step)
                if answer.repeated_count:
                    break
        is_complete = reply.is_complete(options.max_new_tokens)
        self._prompts.keep([*ids, *answer.token_ids], encoded, prompt)
        if is_complete:
            self._prompts.keep_reply(text, answer.token_ids)
        yield _done(reply, None if is_complete else stop.early_end)

    def _yes_no_events(
        self, asked: _Asked, options: InferenceOptions, cancel: Cancellation
    ) -> Iterator[Event]:
        """Read the prompt, and compare how the answer could begin; no token is generated."""
        timer = StageTimer(self.encoder.device)
        stop = StopCondition(cancel, Deadline(options.answer_timeout))
        encoded = self.encoder.encode(asked.image, timer)
        words = named_template(self.template).yes_no
        with timer.stage('prompt'):
            prompt = self._prompts.read(asked.ids, encoded)
            answer = YesNo(
                self._probability(prompt, words.yes), self._probability(prompt, words.no)
            )
        self._prompts.keep(asked.ids, encoded, prompt)
        query, shape = asked.answer.query, asked.image.shape[:2]
        yield from yes_no_events(query, shape, answer, timer.seconds, stop.early_end)

    def _probability(self, prompt: generation.Prefill, beginnings: Sequence[str]) -> float:
        """Return how probable it is that the answer begins with one of these texts."""
        ids = {tuple(answer_ids(self.tokenizer, self.template, text)) for text in beginnings}
        return sum(phrase_probabilities(self._language_model, prompt, sorted(ids)))

    def _generate(
        self,
        prompt: generation.Prefill,
        max_new_tokens: int,
        stop: Cancellation,
        timer: StageTimer,
    ) -> Generator[generation.GeneratedToken]:
        """Yield the answer's tokens; the timer gets the stage "tokens"."""
        steps = generation.generate(
            self._language_model,
            prompt,
            stop_id=self.tokenizer.eos_token_id,
            max_new_tokens=max_new_tokens,
            is_cancelled=stop.is_set,
            decoder=self._decoder,
        )
        with contextlib.closing(steps):
            while True:
                with timer.stage('tokens'):
                    step = next(steps, None)
                if step is None:
                    return
                yield step

    def _reply(
        self,
        encoded: EncodedImage,
        options: InferenceOptions,
        answer: AnswerBuilder,
        timer: StageTimer,
    ) -> Reply:
        refine = self.model.config.refine if options.refine is None else options.refine
        masks = MaskOptions(refine, self._point_rule(options))
        return Reply(self.tokenizer, self._mask_decoder, encoded, answer, masks=masks, timer=timer)

    def _point_rule(self, options: InferenceOptions) -> PointRule | None:
        """Return how SAM gets points, too; None: it gets none."""
        config = self.model.config
        if options.similarity_points is None:
            return config.point_rule
        rule = config.point_rule or PointRule.of_layers(config.llama.num_hidden_layers)
        return rule if options.similarity_points else None


def _done(reply: Reply, early_end: EarlyEnd | None) -> Done:
    """Return the result of a reply that was generated."""
    is_cut = early_end is None and not reply.has_ended
    return Done(reply.result(early_end, is_cut=is_cut))


def _last_result(events: Iterator[Event]) -> Segmentation:
    """Return the result of a stream."""
    *_, done = events
    return done.result
