# SPDX-License-Identifier: Apache-2.0
"""The public Python API: a picture and a command in, words and masks out.

    lisa = Segmenter.load('lisa-tabletop')
    result = lisa.segment(image, 'something to drink from')
    for event in lisa.stream(image, 'segment the red mug'): ...

Threads: a Segmenter answers one request at a time; call it from one thread, or take turns.
`cancel` alone may be set from any other thread meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lisa_ros.errors import QueryError
from lisa_ros.model import checkpoint, generation
from lisa_ros.model.device import resolve_device
from lisa_ros.model.image_processing import ClipPreprocessing, check_rgb, clip_pixels, sam_input
from lisa_ros.model.lisa import IMAGE_TOKEN, LISA
from lisa_ros.model.registry import resolve_bundled_model
from lisa_ros.model.tokenizer import SPACE, Tokenizer
from lisa_ros.perception import mask_scores
from lisa_ros.perception.image_encoder import EncodedImage, StageTimer, image_key
from lisa_ros.perception.mask_refinement import refine_mask_logits
from lisa_ros.perception.masks import iou
from lisa_ros.perception.prompts import (
    append_boxes,
    asks_for_other_object,
    prompt_ids,
    training_ids,
)
from lisa_ros.results import (
    Dialogue,
    Done,
    Event,
    MaskReady,
    ScoreFeatures,
    Segmentation,
    Status,
    Token,
    Turn,
    answer_text,
)

MIN_ANSWER_TOKENS = 64  # places that a prompt leaves free at least [tokens]
SAME_OBJECT_IOU = (
    0.6  # IoU from which two masks show one thing; two things in one mask and one of them: 0.5
)
MAX_MASKS = 254  # of one answer: what ~/mask can number; each has H x W floats, too

Cancel = threading.Event | Callable[[], bool]


@dataclass
class _AnswerBuilder:
    """An answer while it is being written."""

    ids: list[int] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)
    to_mask: float | None = None  # seconds
    logits: list[np.ndarray] = field(default_factory=list)  # each (H, W) float32
    scores: list[float] = field(default_factory=list)
    evidence: list[ScoreFeatures] = field(default_factory=list)
    shown: Sequence[np.ndarray] = ()  # each (H, W) bool: not to be shown again
    repeated: bool = False  # whether one of them would have been


class Segmenter:
    """A loaded LISA with its settings; the module's docstring says how threads share it.

    The features of the last picture are kept: asking about it again costs only the words. So are
    those of pictures that it was told to `look` at.
    """

    def __init__(
        self,
        model: LISA,
        tokenizer: Tokenizer,
        clip_recipe: ClipPreprocessing,
        *,
        template: str | None = None,
        max_new_tokens: int = 512,
        confidence_threshold: float | None = None,
        typed_specials: bool = False,
        dialogue_boxes: bool = False,
        refine: bool | None = None,
    ):
        """Take a model that is loaded already; `load` does it from files.

        Args:
            model: in eval mode; it runs on the device where it is.
            tokenizer: the model's.
            clip_recipe: how the model's CLIP wants its pictures.
            template: conversation template (prompts.TEMPLATES); None: the model's own.
            max_new_tokens: longest answer [tokens].
            confidence_threshold: masks with a lower score are left out [0..1]; None: as the
                model says.
            typed_specials: "[SEG]" and the like in a command are tokens, as in the original, and
                give masks, too, before those of the answer.
            dialogue_boxes: earlier answers tell the model where their masks were, as boxes in
                words (prompts.with_boxes). No released model was taught to read them.
            refine: masks are brought to the picture's edges (refining.py); None: as the model
                says.
        """
        self.model, self.tokenizer, self.clip_recipe = model, tokenizer, clip_recipe
        self.template = template or model.config.template
        self.max_new_tokens = max_new_tokens
        self.confidence_threshold = confidence_threshold
        self.typed_specials = typed_specials
        self.dialogue_boxes = dialogue_boxes
        self.refine = refine
        self._picture: EncodedImage | None = None
        self._ahead: dict[tuple, EncodedImage] = {}

    @classmethod
    def load(
        cls,
        name: str | Path = 'lisa-tabletop',
        *,
        device: str | None = None,
        precision: str | None = None,
        vision_tower: str | Path | None = None,
        sam: str | Path | None = None,
        template: str | None = None,
        max_new_tokens: int = 512,
        confidence_threshold: float | None = None,
        typed_specials: bool = False,
        refine: bool | None = None,
    ) -> Segmenter:
        """Load a model by the name of ours, a folder or a hub id.

        Args:
            name: "lisa-tabletop", a folder (ours or a released LISA), or a hub id.
            device: cpu, cuda, cuda:1; None or "auto": the GPU where there is one.
            precision: fp32, bf16, fp16, int8, nf4; None or "auto": bf16 on a GPU, fp32 on a CPU.
            vision_tower: CLIP's folder or hub id; None: the one that the checkpoint names.
            sam: a .pth of segment-anything, for a released LISA that lacks SAM's weights or some
                of them (the vision encoder, say, which LISA does not train).
            template: conversation template; None: as the checkpoint tells.
            max_new_tokens: see `__init__`, as the following.
            confidence_threshold: see `__init__`.
            typed_specials: see `__init__`.
            refine: see `__init__`.

        Raises:
            CheckpointError: what is there is no LISA, or not whole.
            SettingsError: the device, the precision or the template is not to be had.
        """
        where = resolve_device(device)
        if precision in (None, '', 'auto'):
            precision = 'bf16' if where.type == 'cuda' else 'fp32'
        loaded = checkpoint.load(
            resolve_bundled_model(name),
            vision_tower=vision_tower or None,
            sam=sam or None,
            template=template or None,
            device=where,
            precision=precision,
        )
        return cls(
            loaded.model,
            loaded.tokenizer,
            loaded.clip_recipe,
            max_new_tokens=max_new_tokens,
            confidence_threshold=confidence_threshold,
            typed_specials=typed_specials,
            refine=refine,
        )

    @property
    def _threshold(self) -> float:
        given, own = self.confidence_threshold, self.model.config.confidence_threshold
        return own if given is None else given

    @property
    def _refines(self) -> bool:
        return self.model.config.refine if self.refine is None else self.refine

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.mm_projector.weight.device

    def encode_images(self, images: Sequence[np.ndarray]) -> None:
        """Let CLIP and SAM look at several pictures at once, as a GPU likes it.

        They are kept until the next `look`; questions about them cost only the words. The first
        answer about each tells its share of the seconds.

        Args:
            images: each (H, W, 3) uint8 RGB, of any size.

        Raises:
            ImageError: one is not.
        """
        clock, size = StageTimer(self.device), self.model.config.sam_size
        with clock.stage('preprocess'):
            several = {image_key(check_rgb(image)): image for image in images}
            sam = [sam_input(image, size) for image in several.values()]
            clip = [clip_pixels(image, self.clip_recipe) for image in several.values()]
        self._ahead = {}
        if not several:
            return
        with torch.inference_mode():
            with clock.stage('clip'):
                tokens = self.model.encode_clip(torch.from_numpy(np.stack(clip)).to(self.device))
            with clock.stage('sam'):
                pixels = torch.from_numpy(np.stack([one.pixels for one in sam]))
                features = self.model.encode_sam(pixels.to(self.device))
        share = {name: spent / len(several) for name, spent in clock.seconds.items()}
        self._ahead = {
            key: EncodedImage(key, image, tokens[i], sam[i], features[i : i + 1], dict(share))
            for i, (key, image) in enumerate(several.items())
        }

    def segment(
        self,
        image: np.ndarray,
        text: str,
        dialogue: Dialogue | None = None,
        cancel: Cancel | None = None,
    ) -> Segmentation:
        """Answer a command about a picture.

        Args:
            image: (H, W, 3) uint8 RGB.
            text: the command.
            dialogue: earlier turns about the same picture; the oldest are left out, whole, where
                they do not fit.
            cancel: an Event, or a function that says whether to stop; asked before every token.

        Raises:
            ImageError: the picture is not (H, W, 3) uint8.
            QueryError: the command is empty, or too long by itself.
        """
        for event in self.stream(image, text, dialogue, cancel):
            if isinstance(event, Done):
                return event.result
        raise AssertionError('a stream ends with Done')

    def stream(
        self,
        image: np.ndarray,
        text: str,
        dialogue: Dialogue | None = None,
        cancel: Cancel | None = None,
    ) -> Iterator[Event]:
        """Answer in pieces: Token and MaskReady as they come, Done at last.

        A MaskReady follows the Token of its [SEG] at once, before the words that come after it. A
        [SEG] below the threshold, or after `MOST_MASKS` masks, is a word only. So is one that
        shows once more what the dialogue has shown, where "the other one" was asked for.
        Arguments and errors as `segment`; errors come from this call, not from the iteration.
        """
        check_rgb(image)
        places = self.model.config.llama.max_position_embeddings
        room = min(MIN_ANSWER_TOKENS, self.max_new_tokens)
        ids = prompt_ids(
            self.tokenizer,
            self.template,
            text,
            append_boxes(dialogue) if dialogue and self.dialogue_boxes else dialogue,
            typed_specials=self.typed_specials,
            max_length=places + 1 - self.model.config.image_tokens - room,
        )
        answer = _AnswerBuilder(shown=_not_again(text, dialogue, image.shape[:2]))
        return self._events(image, text, ids, _asker(cancel), answer)

    def _events(
        self,
        image: np.ndarray,
        text: str,
        ids: list[int],
        cancelled: Callable[[], bool],
        answer: _AnswerBuilder,
    ) -> Iterator[Event]:
        clock = StageTimer(self.device)
        picture = self._look(image, clock)
        with clock.stage('prompt'):
            prompt = self._read(ids, picture)

        for state in self._typed_states(text, ids, prompt):
            # typed, not predicted: the score tells the mask's certainty alone
            yield from self._mask(state, 1.0, 1.0, picture, answer, clock)

        config, words = self.model.config, self.tokenizer.stream()
        steps = generation.generate(
            self.model,
            prompt,
            stop_id=self.tokenizer.eos_token_id,
            max_new_tokens=min(
                self.max_new_tokens, config.llama.max_position_embeddings - len(prompt.states)
            ),
            cancelled=cancelled,
        )
        said = 1.0  # probability of all words so far; of two near numbers either would do
        while True:
            with clock.stage('tokens'):
                step = next(steps, None)
            if step is None:
                break
            if not self.tokenizer.token(step.token_id).strip(SPACE).isdigit():
                said *= step.probability
            answer.ids.append(step.token_id)
            yield Token(step.token_id, words.push(step.token_id))
            if step.token_id == config.seg_token_id:
                yield from self._mask(step.state, step.probability, said, picture, answer, clock)
        finished = len(answer.ids) > 0 and (
            answer.ids[-1] == self.tokenizer.eos_token_id or len(answer.ids) >= self.max_new_tokens
        )
        stopped = not finished and cancelled()
        yield Done(self._result(text, image, answer, stopped, clock))

    def teacher_forced(self, image: np.ndarray, text: str, answer: str = '[SEG].') -> Segmentation:
        """Return the masks of an answer that is given, as the original's evaluation makes them.

        What the model would have said is not asked, no mask is left out for its score, and scores
        tell the masks' own certainty alone. For what a user gets, `segment`.

        Args:
            image: (H, W, 3) uint8 RGB.
            text: the question.
            answer: with a [SEG] for each mask.

        Raises:
            ImageError, QueryError: as `segment`.
        """
        check_rgb(image)
        turns = [Turn(text, answer)]
        ids, _ = training_ids(self.tokenizer, self.template, turns, self.typed_specials)
        places = len(ids) - 1 + self.model.config.image_tokens
        most = self.model.config.llama.max_position_embeddings
        if places > most:
            raise QueryError(
                f'question and answer take {places} places, this model has {most}: shorten them'
            )
        clock, known = StageTimer(self.device), _AnswerBuilder()
        known.ids = self.tokenizer.encode(answer, specials=True)
        picture = self._look(image, clock)
        with clock.stage('prompt'):
            prompt = self._read(ids, picture)
        states = self._seg_states(ids, prompt)
        given = known.ids.count(self.model.config.seg_token_id)
        for state in states[len(states) - given :]:  # those before were typed in the question
            list(self._mask(state, 1.0, 1.0, picture, known, clock, threshold=0.0))
        return self._result(text, image, known, False, clock)

    # ---- the steps

    def _look(self, image: np.ndarray, clock: StageTimer) -> EncodedImage:
        """Return CLIP's view of the picture, from the last request if it is the same one."""
        with clock.stage('preprocess'):
            key = image_key(image)
            known = self._picture  # read once: a thread out of turn may put another one there
            if known is not None and known.key == key:
                return known
            seen = self._ahead.get(key)
            if seen is not None:
                clock.add(seen.seconds)
                seen.seconds = {}
                self._picture = seen
                return seen
            small = torch.from_numpy(clip_pixels(image, self.clip_recipe))
            sam = sam_input(image, self.model.config.sam_size)
        with clock.stage('clip'), torch.inference_mode():
            clip_tokens = self.model.encode_clip(small[None].to(self.device))[0]
        picture = self._picture = EncodedImage(key, image, clip_tokens, sam)
        return picture

    def _read(self, ids: list[int], picture: EncodedImage) -> generation.Prefill:
        with torch.inference_mode():
            input_ids = torch.tensor(ids, device=self.device)
            places = self.model.embed(input_ids, picture.clip_tokens)
        return generation.prefill(self.model, places)

    def _typed_states(self, text: str, ids: list[int], prompt: generation.Prefill) -> list[Tensor]:
        """Return the states that predict the [SEG] that the user typed, if those count."""
        if not self.typed_specials:
            return []
        typed = self.tokenizer.encode(text, specials=True).count(self.model.config.seg_token_id)
        states = self._seg_states(ids, prompt)
        # earlier turns have [SEG] of their own, but their masks were given with their answers
        return states[len(states) - typed :]

    def _seg_states(self, ids: list[int], prompt: generation.Prefill) -> list[Tensor]:
        """Return the states that predict the [SEG] that a prompt has, in their order."""
        seg, after_picture = self.model.config.seg_token_id, ids.index(IMAGE_TOKEN)
        shift = self.model.config.image_tokens - 1  # the picture takes P places for one id
        places = [
            place + (shift if place > after_picture else 0)
            for place, token in enumerate(ids)
            if token == seg
        ]
        return [prompt.states[place - 1] for place in places]

    def _mask(
        self,
        state: Tensor,
        seg: float,
        words: float,
        picture: EncodedImage,
        answer: _AnswerBuilder,
        clock: StageTimer,
        threshold: float | None = None,
    ) -> Iterator[MaskReady]:
        """Make one mask and note it, unless its score is below the threshold or there are 254."""
        if len(answer.logits) >= MAX_MASKS:
            return
        with torch.inference_mode():
            if picture.sam_features is None:
                with clock.stage('sam'):
                    pixels = torch.from_numpy(picture.sam.pixels)[None].to(self.device)
                    picture.sam_features = self.model.encode_sam(pixels)
            with clock.stage('masks'):
                prompts = self.model.project_seg(state[None])
                low_res, guess = self.model.decode_masks(picture.sam_features, prompts)
                logits = self.model.postprocess(
                    low_res, picture.sam.resized, picture.sam.original
                )[0]
                evidence = ScoreFeatures(
                    words, seg, _certainty(logits), float(guess[0].float().clamp(0, 1))
                )
                pixels_logits = logits.cpu().numpy()
        if self._refines:
            with clock.stage('refine'):
                cell = max(pixels_logits.shape) / max(low_res.shape[-2:])
                pixels_logits = refine_mask_logits(picture.image, pixels_logits, cell)
        config = self.model.config
        score = mask_scores.score(evidence, config.calibration, config.calibration_curve)
        if score < (self._threshold if threshold is None else threshold):
            return
        if any(iou(pixels_logits > 0, before) > SAME_OBJECT_IOU for before in answer.shown):
            answer.repeated = True
            return
        if answer.to_mask is None:
            answer.to_mask = time.perf_counter() - answer.since
        answer.evidence.append(evidence)
        answer.logits.append(pixels_logits)
        answer.scores.append(score)
        yield MaskReady(len(answer.logits) - 1, pixels_logits > 0, pixels_logits, score)

    def _result(
        self,
        text: str,
        image: np.ndarray,
        answer: _AnswerBuilder,
        stopped: bool,
        clock: StageTimer,
    ) -> Segmentation:
        shape = (len(answer.logits), *image.shape[:2])
        logits = np.stack(answer.logits) if answer.logits else np.zeros(shape, np.float32)
        masks = logits > 0
        raw = self.tokenizer.decode(answer.ids, skip_special_tokens=True)
        status = Status.FOUND if masks.any() else Status.NOT_FOUND
        if stopped:
            reason = 'cancelled while it was being answered'
        else:
            reason = 'what was shown before is not the other one' if answer.repeated else ''
        return Segmentation(
            query=text,
            answer=answer_text(raw),
            answer_raw=raw,
            token_ids=tuple(answer.ids),
            masks=masks,
            mask_logits=logits,
            scores=np.asarray(answer.scores, np.float32),
            status=Status.CANCELLED if stopped else status,
            score_features=tuple(answer.evidence),
            reason=reason,
            timings=clock.seconds,
            time_to_first_mask=answer.to_mask,
        )


def _not_again(
    text: str, dialogue: Dialogue | None, size: tuple[int, int]
) -> Sequence[np.ndarray]:
    """Return the masks that the answer may not show again, each (H, W) bool."""
    if dialogue is None or dialogue.shown is None or not asks_for_other_object(text):
        return ()
    return dialogue.shown if dialogue.shown.shape[1:] == size else ()


def _certainty(logits: Tensor) -> float:
    """Return the mean probability of the mask's own pixels, 0.5..1; 0 of an empty mask."""
    inside = logits[logits > 0]
    return float(inside.sigmoid().mean()) if len(inside) else 0.0


def _asker(cancel: Cancel | None) -> Callable[[], bool]:
    if cancel is None:
        return lambda: False
    return cancel.is_set if isinstance(cancel, threading.Event) else cancel
