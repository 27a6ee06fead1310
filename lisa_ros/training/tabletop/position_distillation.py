# SPDX-License-Identifier: Apache-2.0
"""Distillation that adds position codes to a trained CLIP and keeps its other features.

`position_codes` adds the codes in closed form. What is left is learned by distillation: the first
norm divides each patch by its own deviation, and the codes with it. The teacher is the CLIP from
before, with clean codes added to its states.

The projector passes the codes on along directions in which image tokens hardly vary. The language
model does not use the codes yet: it learns to in a later `pretrain` run, with a feature cache.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lisa_ros.model import checkpoint, export, image_processing
from lisa_ros.model.lisa import clip_patch_states
from lisa_ros.training.distributed import init_distributed, rank_zero_first
from lisa_ros.training.run_identity import RunIdentity, sample_weights
from lisa_ros.training.tabletop import dataset, saved_runs
from lisa_ros.training.tabletop.dataset import SceneSet
from lisa_ros.training.tabletop.initialization import clip_preprocessing
from lisa_ros.training.tabletop.position_codes import (
    AMPLITUDE,
    inject_position_codes,
    position_codes,
)
from lisa_ros.training.trainer import Trainer
from lisa_ros.training.trainer_config import TrainerConfig

_TOKEN_AMPLITUDE = 0.7  # of the codes in image tokens whose mean square is one
_BATCH_SIZE, _SAMPLE_SIZE = 16, 64  # images: of a step, to measure states on
_SAMPLE_STEP, _VALIDATION_STEP = 2**30, 2**30 + 1  # seeds that no training step has
TRAINER_CONFIG = TrainerConfig(
    steps=260,
    learning_rate=2e-3,
    warmup_steps=20,
    decay_fraction=0.6,
    betas=(0.9, 0.98),
    max_grad_norm=5.0,
)


class PositionDistillationTask:
    """Trains the CLIP of a model to carry position codes; the rest of the model is not trained.

    Letters: B images, P patches, K codes, W width of CLIP's states.
    """

    loss_weights = {'features': 1.0, 'positions': 0.7}  # noqa: RUF012  # of the protocol

    def __init__(self, start: Path, scenes: SceneSet, seed: int = 0):
        """Load a model and add the codes in closed form.

        Args:
            start: folder of the model.
            scenes: images to train on.
            seed: of the batches.
        """
        loaded = checkpoint.load(start)
        self.lisa, self.tokenizer = loaded.model.float(), loaded.tokenizer
        self.scenes, self.seed = scenes, seed
        self.identity = RunIdentity(str(start), sample_weights(self.lisa.named_parameters()))
        self.preprocessing = clip_preprocessing(self.lisa.config)
        self.teacher = copy.deepcopy(self.lisa.clip).requires_grad_(False).eval()
        self.module = nn.ModuleDict({'clip': self.lisa.clip})
        self.codes = position_codes(self.lisa.config.image_tokens)  # (P, K)
        pixels = self.draw(_SAMPLE_STEP, 0, _SAMPLE_SIZE)
        with torch.no_grad():
            states = self.patch_states(self.teacher, pixels).flatten(0, 1)
            self.mean_state = states.mean(0)  # (W,)
            variances, axes = torch.linalg.eigh(states.double().T.cov())
            # errors count relative to how much the states vary
            self.error_scale = (axes * (variances + 1).rsqrt() @ axes.T).float()  # (W, W)
            self.code_directions = inject_position_codes(self.lisa.clip, pixels, self.codes)
            self._inject_into_projector(states)
        width = len(self.mean_state)
        # projects states onto all other directions, (W, W)
        self.other_directions = (
            torch.eye(width) - self.code_directions.T @ self.code_directions  # (K, W)
        )

    def patch_states(self, clip: nn.Module, pixels: Tensor) -> Tensor:
        """Return the patch states (B, P, W) float of a CLIP: the student's or the teacher's."""
        return clip_patch_states(clip, pixels, self.lisa.config.mm_vision_select_layer).float()

    def _inject_into_projector(self, states: Tensor) -> None:
        """Make the projector write the codes along directions in which its tokens hardly vary.

        Args:
            states: (n, W), sample of patch states.
        """
        projector, directions = self.lisa.mm_projector, self.code_directions
        tokens = projector(states)
        scale = tokens.pow(2).mean(-1, keepdim=True).sqrt()
        _, axes = torch.linalg.eigh((tokens / scale).double().T.cov())
        response = axes[:, : len(directions)].float() * _TOKEN_AMPLITUDE * scale.mean() / AMPLITUDE
        change = response - projector.weight @ directions.T  # replaces the old response
        projector.weight += change @ directions
        projector.bias -= change @ (directions @ self.mean_state)

    def draw(self, step: int, batch_index: int, count: int = _BATCH_SIZE) -> Tensor:
        """Return images for CLIP, (B, 3, h, w), the same for the same arguments and seed."""
        rng = np.random.default_rng((self.seed, step, batch_index))
        images = [
            dataset.augment(rng, self.scenes.view(i)).image
            for i in rng.integers(len(self.scenes), size=count)
        ]
        return torch.from_numpy(
            np.stack([image_processing.clip_pixels(i, self.preprocessing) for i in images])
        )

    def losses(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        """Return the squared errors of the features and of the codes, for pixels of CLIP."""
        error = self._error(batch)
        return {
            'features': (error @ self.other_directions @ self.error_scale).pow(2).sum(-1).mean(),
            'positions': (error @ self.code_directions.T).pow(2).sum(-1).mean(),
        }

    def _error(self, pixels: Tensor) -> Tensor:
        """Return the states minus the teacher's states with clean codes, (B, P, W)."""
        with torch.no_grad():
            teacher_states = self.patch_states(self.teacher, pixels)
        target = (teacher_states - self.mean_state) @ self.other_directions
        target = target + AMPLITUDE * self.codes @ self.code_directions
        return self.patch_states(self.lisa.clip, pixels) - self.mean_state - target

    @torch.no_grad()
    def validate(self, run: Path) -> dict[str, float]:
        """Return the relative deviation of the codes and of all other features."""
        pixels = self.draw(_VALIDATION_STEP, 0, _SAMPLE_SIZE)
        error = self._error(pixels)
        teacher_states = self.patch_states(self.teacher, pixels) - self.mean_state
        moved = (error @ self.other_directions).pow(2).sum()
        moved = moved / (teacher_states @ self.other_directions).pow(2).sum()
        position_error = (error @ self.code_directions.T).pow(2).mean().sqrt() / AMPLITUDE
        return {
            'val_position_error': float(position_error),
            'val_feature_change': float(moved.sqrt()),
        }

    def export(self, run: Path) -> None:
        """Write the model to `model/`."""
        export.save(self.lisa, self.tokenizer, self.preprocessing, run / 'model')


def distill(run: Path, scenes: Path, start: Path, trainer: TrainerConfig = TRAINER_CONFIG) -> bool:
    """Add position codes to the CLIP of a model; resume the run if its folder exists.

    Args:
        run: folder of the run.
        scenes: folder that `lisa-ros scenes` wrote.
        start: folder of the model.
        trainer: options of the training loop.

    Returns:
        False if a signal stopped it before its last step.
    """
    rank, world, _ = init_distributed('cpu')
    with rank_zero_first(rank, world):
        saved_runs.rename_columns(run, saved_runs.POSITION_COLUMNS)
    task = PositionDistillationTask(start, SceneSet.load(scenes / 'train'), trainer.seed)
    return Trainer(run, trainer, task, identity=task.identity).train()
