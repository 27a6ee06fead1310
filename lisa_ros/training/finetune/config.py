# SPDX-License-Identifier: Apache-2.0
"""Options of a fine-tuning and what it trains. `lisa-ros finetune` has flags for the options."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lisa_ros.errors import SettingsError
from lisa_ros.model import quantization
from lisa_ros.training.trainer_config import TrainerConfig

PRECISIONS = ('fp32', 'bf16', 'nf4')
# The original trains these weights whole, and LoRA on these layers of the language model.
FULLY_TRAINED = (
    'llm.model.embed_tokens.',
    'llm.lm_head.',
    'text_hidden_fcs.',
    'sam.mask_decoder.',
)
LORA_TARGETS = r'model\.layers\.\d+\.self_attn\.(q_proj|v_proj)'  # names below `llm.`


def _default_trainer() -> TrainerConfig:
    return TrainerConfig(
        steps=500,
        learning_rate=3e-4,
        warmup_steps=100,
        decay_fraction=1.0,
        accumulate=10,
        validate_every=100,
        save_every=100,
        monitor='val_giou',
    )


@dataclass(frozen=True)
class FinetuneConfig:
    """What a fine-tuning depends on, besides its base checkpoint and images."""

    trainer: TrainerConfig = field(default_factory=_default_trainer)
    batch_size: int = 1  # images in a micro-batch
    queries_per_image: int = 3  # at most
    rank: int = 8  # of LoRA
    alpha: int = 16  # of LoRA: its output is multiplied by alpha / rank
    dropout: float = 0.05  # of LoRA's input
    precision: str = 'fp32'  # of the frozen weights: fp32, bf16 or nf4
    recompute: bool = True  # recompute the language model's activations, to save memory

    def __post_init__(self) -> None:
        """Set `trainer.bf16` for frozen weights in bf16 or nf4: they need products in bfloat16."""
        if self.precision != 'fp32' and not self.trainer.bf16:
            object.__setattr__(self, 'trainer', replace(self.trainer, bf16=True))

    def check_precision(self, device: str) -> None:
        """Check that a model of this precision can be trained on a device.

        Raises:
            SettingsError: it cannot.
        """
        if self.precision not in PRECISIONS:
            raise SettingsError(
                f'precision {self.precision!r} cannot be trained; '
                f'expected one of {", ".join(PRECISIONS)}'
            )
        if self.precision == 'nf4':
            quantization.check_precision('nf4', device)
