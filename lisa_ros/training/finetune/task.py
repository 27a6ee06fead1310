# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning task: trains the weights that the original code trains (train_ds.py).

Trained are LoRA on the query and value projections of the language model, and all weights of
embed_tokens, lm_head, text_hidden_fcs and SAM's mask decoder. The other weights are frozen. They
can be stored in 4 bits (nf4), which needs a CUDA GPU.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isnan
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lisa_ros.datasets.annotations import AnnotatedImage, AnnotatedQuery, ImageWithQueries
from lisa_ros.datasets.json_io import read_or_skip
from lisa_ros.error_text import short_repr
from lisa_ros.errors import DataError, ErrorHandler, ImageError, QueryError, raise_error
from lisa_ros.evaluation import metrics
from lisa_ros.model import assembly, export, quantization
from lisa_ros.model.lisa import LISA
from lisa_ros.model.lora_linear import add_lora_layers, lora_deltas, state_dict_without_lora
from lisa_ros.model.packing import IGNORE_INDEX
from lisa_ros.perception import overlay, prompts
from lisa_ros.results import Turn
from lisa_ros.training.finetune import batch_losses, batches, samplers
from lisa_ros.training.finetune.base_checkpoint import BaseCheckpoint
from lisa_ros.training.finetune.batches import FinetuneBatch, Sample
from lisa_ros.training.finetune.config import FULLY_TRAINED, LORA_TARGETS, FinetuneConfig
from lisa_ros.training.finetune.mixture import Mixture
from lisa_ros.training.run_identity import RunIdentity, sample_weights

_MAX_LENGTH = 512  # of text and image [positions]; model_max_length of the original
_MIN_TEXT_LENGTH = 128  # room for text, however many positions the image takes [tokens]
_MAX_TILES = 20  # images in answers.png
_SURELY_SHORT = 20  # a query of fewer characters is never too long; a character has few tokens
_MOST_BROKEN_BATCHES = 20  # in a row, each replaced by another
_NEXT_ATTEMPT = 1_000_003  # added to the number of a batch to draw another one


class FinetuneTask:
    """A LISA model with LoRA, and the images to train it on; a `trainer.TrainingTask`.

    The folder of a run gets `answers.png` (validation images with their masks), `model/` (the
    merged weights in our format) and `original/` (the same in the released format).

    `draw` may be called from another thread or a forked process. Call all other methods from one
    thread.
    """

    loss_weights = batch_losses.LOSS_WEIGHTS

    def __init__(
        self,
        base: BaseCheckpoint,
        mixture: Mixture,
        validation: Sequence[ImageWithQueries] = (),
        config: FinetuneConfig | None = None,
        device: str = 'cpu',
        on_error: ErrorHandler = raise_error,
    ):
        """Load the base model and add LoRA.

        Args:
            base: the model to start from.
            mixture: the data to train on.
            validation: images for `validate`.
            config: options.
            device: cpu or cuda.
            on_error: called for each batch or validation image that cannot be made; if it
                returns, another batch is drawn, and the image is left out.

        Raises:
            CheckpointError: see `BaseCheckpoint.load`.
            SettingsError: see `BaseCheckpoint.load`; or the precision cannot be trained.
        """
        self.config = config or FinetuneConfig()
        self.config.check_precision(device)
        self.device = torch.device(device)
        self._base, self._mixture, self._validation = base, mixture, validation
        self._on_error = on_error
        loaded = base.load(device, self.config.precision)
        self.tokenizer, self.clip_preprocessing = loaded.tokenizer, loaded.clip_preprocessing
        self._vision_tower = loaded.vision_tower
        self.module = self.lisa = loaded.model
        add_lora(self.lisa, self.config)

    @property
    def identity(self) -> RunIdentity:
        """What a resumed run must have in common with its first call."""
        names = '\n'.join(image.name or str(image.path) for image in self._validation)
        count = len(self._validation)
        return RunIdentity(
            base_name=str(self._base.name),
            base=sample_weights(
                (n, p) for n, p in self.lisa.named_parameters() if not p.requires_grad
            ),
            options={
                '--rank': str(self.config.rank),
                '--alpha': str(self.config.alpha),
                '--template': self.lisa.config.template,
            },
            data={
                '--data': ', '.join(
                    f'{name} ({rate:g})' for name, rate in self._mixture.rates.items()
                ),
                '--val': f'{count} images ({zlib.crc32(names.encode()):08x})' if names else 'none',
            },
        )

    def draw(self, step: int, batch_index: int) -> FinetuneBatch:
        """Return the batch of a micro-step. It depends only on the arguments and the seed.

        Raises:
            DataError: the batch cannot be made, and `on_error` raised it.
        """
        for attempt in range(_MOST_BROKEN_BATCHES):
            batch = read_or_skip(partial(self._draw, step, batch_index, attempt), self._on_error)
            if batch is not None:
                return batch
        raise DataError(f'{_MOST_BROKEN_BATCHES} batches of step {step} cannot be made')

    def _draw(self, step: int, batch_index: int, attempt: int) -> FinetuneBatch:
        number = batch_index + attempt * _NEXT_ATTEMPT
        return self.make_batch(self._mixture.draw(step, number, self.config.batch_size))

    @property
    def _max_length(self) -> int:
        """Longest dialogue [tokens; one token stands for the image]."""
        model = self.lisa.config
        positions = min(_MAX_LENGTH, model.llama.max_position_embeddings)
        positions = max(positions, model.image_tokens + _MIN_TEXT_LENGTH)
        return positions - model.image_tokens + 1

    def make_batch(self, samples: Sequence[Sample]) -> FinetuneBatch:
        """Return a batch of these samples; dialogues that are too long are cut.

        Raises:
            DataError: a question or an image cannot be used.
        """
        try:
            return batches.make_batch(
                self.lisa.config,
                self.tokenizer,
                self.clip_preprocessing,
                samples,
                max_length=self._max_length,
            )
        except (QueryError, ImageError) as error:
            names = ', '.join(sample.name for sample in samples)
            raise DataError(f'{names}: {error}') from error

    def long_queries(self) -> list[DataError]:
        """Return an error for each query or dialogue of the data that is too long.

        A query would lose its [SEG], a dialogue all of its answers.
        """
        return [*self._long_queries_of_images(), *self._long_dialogues()]

    def _long_dialogues(self) -> list[DataError]:
        dialogues = (
            dialogue
            for sampler in self._mixture.samplers.values()
            if isinstance(sampler, samplers.DialogueSampler)
            for dialogue in sampler.dialogues
        )
        room = self._max_length - self._answer_start(Turn('a', 'a'))  # [tokens]
        return [
            DataError(
                f'{dialogue.path}: the first question of its dialogue, of {len(text)} characters, '
                f'is too long for a training: {short_repr(text)}; shorten it'
            )
            for dialogue in dialogues
            # a byte is at most one token: most questions need not be tokenized
            if len((text := dialogue.turns[0].query).encode(errors='replace')) >= room
            if self._is_cut_before_answer(dialogue.turns[0])
        ]

    def _is_cut_before_answer(self, turn: Turn) -> bool:
        try:
            return self._answer_start(turn) >= self._max_length
        except QueryError:  # another problem, which is named when the dialogue is drawn
            return False

    def _answer_start(self, turn: Turn) -> int:
        """Return the length of a prompt up to its answer [tokens; the image counts as one]."""
        _, labels = prompts.training_ids(self.tokenizer, self.lisa.config.template, [turn])
        return next(index for index, label in enumerate(labels) if label != IGNORE_INDEX)

    def _long_queries_of_images(self) -> list[DataError]:
        drawn = (
            image
            for sampler in self._mixture.samplers.values()
            if isinstance(sampler, samplers.AnnotatedImageSampler)
            for image in sampler.images
        )
        return [
            DataError(
                f'{image.path}: its query of {len(query.text)} characters is too long for a '
                f'training: {short_repr(query.text)}; shorten it'
            )
            for image in (*drawn, *self._validation)
            if isinstance(image, AnnotatedImage)  # others have class names
            for query in image.queries
            if self._is_too_long(query)
        ]

    def _is_too_long(self, query: AnnotatedQuery) -> bool:
        if len(query.text) < _SURELY_SHORT:
            return False
        ids, _ = prompts.training_ids(
            self.tokenizer,
            self.lisa.config.template,
            [samplers.longest_turn(query)],
            max_length=self._max_length,
        )
        return self.lisa.config.seg_token_id not in ids

    def losses(self, batch: FinetuneBatch, step: int) -> dict[str, Tensor]:
        """Return the losses of the original; they do not depend on the step."""
        return batch_losses.compute_losses(self.lisa, batch)

    @torch.no_grad()
    def validate(self, run: Path) -> dict[str, float]:
        """Return gIoU and cIoU on the validation images; draw some of them in `answers.png`.

        As in the original's validation, the answers are teacher-forced: the model is given
        "[SEG]." and only its mask is compared. Without validation images the result is empty.

        Raises:
            DataError: an image or its queries cannot be used, and `on_error` raised it; or none of
                the images can.
        """
        overlaps, tiles = [], []
        for image in map(self._without_long_queries, self._validation):
            item = read_or_skip(partial(self._validation_item, image), self._on_error)
            if item is None:
                continue
            queries, sample, batch = item
            batch = batch.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, self.config.trainer.bf16):
                masks = batch_losses.predict_masks(self.lisa, batch)[0]
            for query, mask, target in zip(queries, masks, sample.ground_truth, strict=True):
                overlaps.append(metrics.overlap(mask, target))
                if len(tiles) < _MAX_TILES:
                    caption = f'{query.text} ({overlaps[-1].iou:.2f})'
                    tiles.append(overlay.overlay(sample.image, mask[None], caption=[caption]))
        if not overlaps:
            if self._validation:
                raise DataError(
                    f'none of the {len(self._validation)} validation images of --val can be used: '
                    'no weights can be chosen by them; restore the images, or give another --val'
                )
            return {}
        sheet = overlay.contact_sheet(tiles, columns=4)
        Image.fromarray(sheet).save(run / 'answers.png')
        return validation_figures(overlaps)

    def _without_long_queries(self, image: ImageWithQueries) -> ImageWithQueries:
        """Return an image without the queries of `long_queries`, which are reported there."""
        if not isinstance(image, AnnotatedImage):
            return image
        queries = tuple(query for query in image.queries if not self._is_too_long(query))
        return replace(image, queries=queries)

    def _validation_item(
        self, image: ImageWithQueries
    ) -> tuple[Sequence[AnnotatedQuery], Sample, FinetuneBatch] | None:
        """Return the queries of a validation image and its batch; None if it has no queries.

        Raises:
            DataError: it cannot be used.
        """
        sample = samplers.validation_sample(image)
        return (image.queries, sample, self.make_batch([sample])) if sample.dialogues else None

    def export(self, run: Path) -> None:
        """Write the merged weights to `model/`, and in the released format to `original/`.

        `original/` includes CLIP if the base checkpoint includes it. `original/` is not written if
        the released format cannot represent the model.
        """
        merged = self.merge_lora()
        preprocessing = self.clip_preprocessing
        export.save(merged, self.tokenizer, preprocessing, run / 'model', dtype=None)
        if not export.has_original_form(merged.config):
            return
        tower, original = self._vision_tower, run / 'original'
        if tower is None:
            tower = 'clip-vision-tower'
            export.save_clip(merged, preprocessing, original / tower)
        export.save_original(merged, self.tokenizer, original, vision_tower=tower)

    @torch.no_grad()
    def merge_lora(self) -> LISA:
        """Return a LISA model with LoRA merged into its weights, in the precision of the base.

        The trained model does not change; both models share the frozen tensors. For an nf4 base
        the frozen weights are loaded again, unquantized, in bfloat16 on the CPU.
        """
        precision = self.config.precision
        state = state_dict_without_lora(self.lisa)
        base = state
        if precision == 'nf4':
            precision = 'bf16'
            base = self._base.load('cpu', precision).model.state_dict()
            trained = {n for n, p in self.lisa.named_parameters() if p.requires_grad}
            state = {name: state[name].cpu() if name in trained else base[name] for name in base}
        for name, delta in lora_deltas(self.lisa):
            weight = base[name]
            state[name] = weight.float() + delta.to(weight.device, torch.float32)
        state = {n: t.to(quantization.storage_dtype(n, precision)) for n, t in state.items()}
        if self.lisa.config.llama.tie_word_embeddings:
            state.pop('llm.lm_head.weight', None)
        # remove the calibration of mask scores: it was fitted to the weights of the base
        model_config = replace(self.lisa.config, confidence_threshold=0.0, calibration=())
        return assembly.model_from_state_dict(model_config, state)


def validation_figures(overlaps: Sequence[metrics.Overlap]) -> dict[str, float]:
    """Return gIoU and cIoU of at least one overlap, both finite: weights are chosen by them."""
    ciou = metrics.ciou(overlaps)
    # NaN: all objects are absent, and all masks empty; nothing can be better
    return {'val_giou': metrics.giou(overlaps), 'val_ciou': 1.0 if isnan(ciou) else ciou}


def add_lora(lisa: LISA, config: FinetuneConfig) -> None:
    """Add LoRA to the language model; freeze all weights but LoRA's and FULLY_TRAINED.

    Trained weights are always float32. AdamW changes a weight by about a thousandth of its value
    in a step, which the 8 significant bits of bfloat16 cannot represent.
    """
    lisa.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.trainer.seed)
        add_lora_layers(lisa.llm, LORA_TARGETS, config.rank, config.alpha, config.dropout)
    for name, parameter in lisa.named_parameters():
        if name.startswith(FULLY_TRAINED) or '.lora_' in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    if config.recompute:
        with warnings.catch_warnings():  # some 5.* versions of transformers rename this method
            warnings.simplefilter('ignore', FutureWarning)
            lisa.llm.model.gradient_checkpointing_enable({'use_reentrant': False})
