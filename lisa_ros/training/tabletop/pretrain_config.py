# SPDX-License-Identifier: Apache-2.0
"""Options of a pretraining run of lisa-tabletop. `lisa-ros train` has a flag for each of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lisa_ros.errors import SettingsError
from lisa_ros.tabletop import queries
from lisa_ros.training.tabletop.initialization import PATCH_SIZE
from lisa_ros.training.trainer_config import TrainerConfig

# 352 px are 484 image tokens: more than half of the model's 1024 positions are left for text
CLIP_IMAGE_SIZES = range(PATCH_SIZE, 352 + 1, PATCH_SIZE)  # [px]


def _default_trainer() -> TrainerConfig:
    return TrainerConfig(
        steps=4600,
        learning_rate=1e-3,
        warmup_steps=100,
        decay_fraction=0.6,
        weight_decay=0.05,
        betas=(0.9, 0.95),
        muon=True,
        ema_decay=0.99,
        validate_every=300,
    )


@dataclass(frozen=True)
class PretrainConfig:
    """What a run depends on, besides its scenes.

    Raises:
        SettingsError: options contradict each other, or a value is out of range.
    """

    trainer: TrainerConfig = field(default_factory=_default_trainer)
    vision_warmup_steps: int = 600  # first steps, which train only vision encoders and projector
    number_warmup_steps: int = 0  # next steps: all answers contain numbers, no mask losses
    measured_per_image: int = 0  # queries of each image whose answers contain numbers
    reasoning_per_image: int = 0  # queries of each image that need reasoning
    name_noise_rate: float = 0.0  # fraction of located answers read with a wrong object name
    batch_size: int = 16  # images in a batch
    queries_per_image: int = 6
    exclude_categories: tuple[str, ...] = ()  # query categories that are not sampled
    # number of fixed pairs of an image and a reasoning query, which fill half of each batch
    fixed_reasoning_pairs: int = 0
    init_from: Path | None = None  # model folder to start from; None: random weights
    clip_image_size: int | None = None  # side of CLIP's input [px]; None: as the start model
    rebuild_tokenizer: bool = False  # with init_from: train a new tokenizer, remap the weights
    lora_rank: int = 0  # with init_from: train low-rank updates of this rank; 0: the weights
    # model folder whose sizes, tokenizer and vision weights are used; the language model is random
    init_vision_from: Path | None = None
    feature_cache: Path | None = None  # folder of cached vision features; freezes the encoders
    views_per_scene: int = 1  # augmented views of each scene in a feature cache
    threads: int = 2  # of PyTorch on the CPU

    def __post_init__(self) -> None:
        """Check the options against each other."""
        self._check_categories()
        self._check_start_model()
        if self.clip_image_size is not None and self.clip_image_size not in CLIP_IMAGE_SIZES:
            raise SettingsError(
                f'--clip-image-size is {self.clip_image_size} px; expected a multiple of '
                f'{PATCH_SIZE} up to {CLIP_IMAGE_SIZES[-1]}'
            )

    def _check_categories(self) -> None:
        """Check that excluded categories exist and no other option needs them."""
        excluded = set(self.exclude_categories)
        unknown = sorted(excluded - set(queries.CATEGORIES))
        if unknown:
            raise SettingsError(
                f'--exclude-categories: unknown query category {unknown[0]!r}; expected some of '
                f'{", ".join(queries.CATEGORIES)}'
            )
        needed: set[str] = set()
        if self.measured_per_image or self.number_warmup_steps:
            needed |= {'relations', 'two_step'}
        if self.reasoning_per_image:
            needed |= set(queries.IMPLICIT)
        if needed & excluded:
            raise SettingsError(
                f'{", ".join(sorted(needed & excluded))} cannot be excluded: '
                '--measured-per-image, --number-warmup-steps and --reasoning-per-image need them; '
                'leave these options out'
            )

    def _check_start_model(self) -> None:
        """Check the options about the start model against each other."""
        if self.lora_rank and (not self.init_from or self.rebuild_tokenizer):
            raise SettingsError(
                '--lora-rank trains updates of a given model with its tokenizer: '
                'give --init-from, and leave out --rebuild-tokenizer'
            )
        if self.lora_rank and self.clip_image_size:
            raise SettingsError(
                '--lora-rank does not change sizes: give no --clip-image-size with it'
            )
        if self.init_from and self.init_vision_from:
            raise SettingsError(
                'both options name a start model: give --init-from or --init-vision-from, not both'
            )

    def is_vision_warmup(self, step: int) -> bool:
        """Return whether a step trains only the vision losses; never with a feature cache."""
        return self.feature_cache is None and step < self.vision_warmup_steps

    def is_number_warmup(self, step: int) -> bool:
        """Return whether all answers of a step contain numbers and its mask losses are off."""
        first = 0 if self.feature_cache is not None else self.vision_warmup_steps
        return 0 <= step - first < self.number_warmup_steps
