# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that a fine-tuning starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from lisa_ros.errors import SettingsError
from lisa_ros.model import checkpoint, from_llava
from lisa_ros.model.checkpoint import Checkpoint
from lisa_ros.model.origin import Origin


@dataclass(frozen=True)
class BaseCheckpoint:
    """A LISA model, or a LLaVA and a SAM to make one from."""

    name: str | Path  # folder or hub id
    vision_tower: str | Path | None = None  # CLIP's folder or hub id; None: as the checkpoint says
    sam: str | Path | None = None  # a .pth file of segment-anything, for a LLaVA
    is_llava: bool = False
    template: str | None = None  # conversation template; None: the checkpoint's
    seed: int = 0  # of the weights that a LLaVA lacks
    origin: Origin = field(default_factory=Origin)  # whether CLIP may be downloaded; checksums

    def load(self, device: str | torch.device, precision: str) -> Checkpoint:
        """Load the model.

        Args:
            device: where to put it.
            precision: of its weights, one of `quantization.PRECISIONS`.

        Raises:
            CheckpointError: a file is missing or does not fit the model.
            SettingsError: the precision is not available on the device, a LLaVA has no SAM, or the
                model is a READ.
        """
        arguments = {
            'vision_tower': self.vision_tower,
            'sam': self.sam,
            'template': self.template,
            'device': device,
            'precision': precision,
            'origin': self.origin,
        }
        if not self.is_llava:
            return self._without_points(checkpoint.load(self.name, **arguments))
        if self.sam is None:
            raise SettingsError(
                f'{self.name} is a LLaVA model, which has no SAM: give one with --sam, '
                'for example sam_vit_h_4b8939.pth'
            )
        return from_llava.load_llava(self.name, **arguments, seed=self.seed)

    def _without_points(self, loaded: Checkpoint) -> Checkpoint:
        """Return the model if masks are made from [SEG] alone, as our losses do."""
        if loaded.model.config.point_rule is not None:
            raise SettingsError(
                f'{self.name} is a READ, whose points are not trained here: start from the SESAME '
                'that it continues, tsunghanwu/SESAME'
            )
        return loaded
