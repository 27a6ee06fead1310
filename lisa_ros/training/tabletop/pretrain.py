# SPDX-License-Identifier: Apache-2.0
"""Pretrains lisa-tabletop with the losses of the LISA paper and auxiliary losses.

The losses of the paper (section 3.2), with their weights, are cross-entropy 1.0, BCE 2.0 and Dice
0.5. All losses are computed with teacher forcing.

Besides the files of `trainer`, the folder of a run holds `answers.png` (a sheet of validation
answers, written at each validation), `tokenizer/` and `model/` (the exported EMA weights).
"""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn

from lisa_ros.model import export, lora
from lisa_ros.model.lisa import LisaOutput
from lisa_ros.training.distributed import init_distributed, rank_zero_first
from lisa_ros.training.losses import BCE_WEIGHT, CE_WEIGHT, DICE_WEIGHT
from lisa_ros.training.run_identity import RunIdentity, sample_weights
from lisa_ros.training.tabletop import feature_cache, initial_model, saved_runs
from lisa_ros.training.tabletop.attention_supervision import attention_losses, supervised_layer
from lisa_ros.training.tabletop.auxiliary_losses import AuxiliaryHeads
from lisa_ros.training.tabletop.batch_sampler import BatchSampler
from lisa_ros.training.tabletop.batches import QueryBatch, TabletopBatch
from lisa_ros.training.tabletop.dataset import SceneSet
from lisa_ros.training.tabletop.feature_cache import CachedBatch, FeatureCache
from lisa_ros.training.tabletop.initialization import clip_preprocessing
from lisa_ros.training.tabletop.mask_losses import mask_losses
from lisa_ros.training.tabletop.pretrain_config import PretrainConfig
from lisa_ros.training.tabletop.validation import MAX_SCENES, Validation
from lisa_ros.training.trainer import Trainer

LOSS_WEIGHTS = {
    'ce': CE_WEIGHT,
    'bce': BCE_WEIGHT,
    'dice': DICE_WEIGHT,
    'pixel_class': 0.5,
    'patch_class': 0.5,
    'patch_names': 0.7,
    'category_presence': 0.5,
    'object_layout': 0.5,
    'prompt_mask': 1.0,
    'presence': 1.0,
    'numbers': 1.0,
    'attention': 0.3,
    'name_tokens': 0.5,
    'iou': 0.5,
    'presence_accuracy': 0.0,  # not a loss: only logged and plotted
}


class PretrainTask:
    """Training task: a LISA with auxiliary heads, trained on rendered scenes."""

    loss_weights = LOSS_WEIGHTS

    def __init__(self, run: Path, scenes: Path, config: PretrainConfig, device: str = 'cpu'):
        """Load the scenes and build the model.

        Args:
            run: folder of the run, for the tokenizer.
            scenes: folder that `lisa-ros scenes` wrote, with train/ and val/.
            config: options of the run.
            device: to train on.

        Raises:
            DataError: the scenes or the feature cache cannot be used.
            CheckpointError: the start model cannot be loaded.
        """
        torch.manual_seed(config.trainer.seed)
        torch.set_num_threads(config.threads)
        self.config = config
        self.train_set = SceneSet.load(scenes / 'train')
        start = initial_model.build(config, run, self.train_set.scene_graphs, device)
        self.lisa, self.tokenizer = start.lisa, start.tokenizer
        # what a resumed run must have in common: with LoRA the weights of the start model
        frozen = ((n, p) for n, p in self.lisa.named_parameters() if not p.requires_grad)
        val_set = SceneSet.load(scenes / 'val', limit=MAX_SCENES)
        self.identity = RunIdentity(
            str(config.init_from or 'random weights'),
            sample_weights(frozen),
            data={'--scenes': f'{len(val_set)} to validate on ({zlib.crc32(val_set.ids):08x})'},
        )
        self.heads = AuxiliaryHeads(self.lisa.config, self.tokenizer)
        self.module = nn.ModuleDict({'lisa': self.lisa, 'heads': self.heads}).to(device)
        self.feature_cache = self._load_cache(config.feature_cache, device)
        self.sampler = BatchSampler(
            config,
            self.lisa.config,
            self.tokenizer,
            self.train_set if self.feature_cache is None else self.feature_cache,
        )
        self._validation = Validation(
            self.lisa,
            self.heads,
            self.tokenizer,
            val_set,
            bf16=config.trainer.bf16,
        )

    def _load_cache(self, folder: Path | None, device: str) -> FeatureCache | None:
        """Return the feature cache in a folder, and freeze the encoders that it replaces.

        Without a folder it returns None and freezes nothing.
        """
        if folder is None:
            return None
        rank, world, _ = init_distributed(device)
        with rank_zero_first(rank, world):
            cache = feature_cache.load_or_build(
                folder,
                self.lisa,
                self.train_set,
                self.config.views_per_scene,
                bf16=self.config.trainer.bf16,
            )
        for frozen in (self.lisa.clip, self.lisa.sam.vision_encoder, self.heads):
            frozen.requires_grad_(False)
        self.heads.point_scale.requires_grad_(True)
        self.heads.point_bias.requires_grad_(True)
        return cache

    def draw(self, step: int, batch_index: int) -> QueryBatch:
        """Return the batch of a step, see `BatchSampler.draw`."""
        return self.sampler.draw(step, batch_index)

    def losses(self, batch: QueryBatch, step: int) -> dict[str, Tensor]:
        """Return the losses of a batch; during vision warm-up only vision losses."""
        if isinstance(batch, CachedBatch):
            output = self.lisa.forward_from_features(
                batch.inputs,
                self.lisa.project_clip(batch.clip_states),
                batch.image_embeddings,
                packed=True,
                input_of_layer=supervised_layer(self.lisa),
            )
            return self._answer_losses(output, batch, step)
        if self.config.is_vision_warmup(step):
            embeddings = self.lisa.encode_sam(batch.inputs.sam_pixels)
            tokens = self.lisa.encode_clip(batch.inputs.clip_pixels)
            return self._vision_losses(embeddings, tokens, batch, step)
        output = self.lisa(batch.inputs, packed=True, input_of_layer=supervised_layer(self.lisa))
        return {
            **self._vision_losses(output.image_embeddings, output.clip_tokens, batch, step),
            **self._answer_losses(output, batch, step),
        }

    def _vision_losses(
        self, embeddings: Tensor, tokens: Tensor, batch: TabletopBatch, step: int
    ) -> dict[str, Tensor]:
        """Return the losses of SAM's features (B, C, h, w) and of the image tokens (B, P, D)."""
        heads = self.heads
        if self.config.init_from and step < self.config.trainer.warmup_steps:
            # no gradient into the trained encoders while the weights of the heads are still random
            tokens, embeddings = tokens.detach(), embeddings.detach()
        patch_names, category_presence = heads.name_losses(self.lisa, tokens, batch)
        losses = {
            'patch_class': heads.patch_class_loss(tokens, batch),
            'patch_names': patch_names,
            'category_presence': category_presence,
            'object_layout': heads.object_layout_loss(tokens, batch),
        }
        if self.config.lora_rank:  # SAM's encoder is frozen
            return losses
        return {'pixel_class': heads.pixel_class_loss(embeddings, batch), **losses}

    def _answer_losses(
        self, output: LisaOutput, batch: QueryBatch, step: int
    ) -> dict[str, Tensor]:
        """Return the losses of answers and masks."""
        grounding = {'numbers': self.heads.number_loss(self.lisa, output, batch)}
        targets = batch.attention_targets
        if targets is not None:
            grounding |= attention_losses(self.lisa, output, batch.inputs, targets)
        if self.config.is_number_warmup(step):
            return {'ce': output.ce_loss, **grounding}
        bce, dice, iou = mask_losses(self.lisa, output, batch)
        presence, presence_accuracy = self.heads.presence_loss(self.lisa, output, batch)
        return {
            'ce': output.ce_loss,
            'bce': bce,
            'dice': dice,
            'prompt_mask': self.heads.prompt_mask_loss(output, batch),
            'presence': presence,
            **grounding,
            'iou': iou,
            'presence_accuracy': presence_accuracy,
        }

    def validate(self, run: Path) -> dict[str, float]:
        """Return IoU by query category and presence, see `Validation.run`; write answers.png."""
        return self._validation.run(run / 'answers.png')

    def export(self, run: Path) -> None:
        """Write the weights to `model/`; with LoRA, a copy of the start model and the updates."""
        folder = run / 'model'
        if not self.config.lora_rank:
            preprocessing = clip_preprocessing(self.lisa.config)
            export.save(self.lisa, self.tokenizer, preprocessing, folder, bits=8)
            return
        shutil.copytree(self.config.init_from, folder, dirs_exist_ok=True)
        updates = lora.load_lora(self.config.init_from) | lora.lora_state_dict(self.lisa)
        rounded = {name: export.quantize_rows(t, bits=8) for name, t in updates.items()}
        lora.save_lora(rounded, folder)


def train(run: Path, scenes: Path, config: PretrainConfig, device: str = 'cpu') -> bool:
    """Train lisa-tabletop; resume the run if its folder exists.

    Args:
        run: folder of the run.
        scenes: folder that `lisa-ros scenes` wrote.
        config: options of the run.
        device: to train on.

    Returns:
        False if a signal stopped the training before its last step.
    """
    rank, world, device = init_distributed(device)
    with rank_zero_first(rank, world):
        saved_runs.rename_columns(run, saved_runs.PRETRAIN_COLUMNS)
    task = PretrainTask(run, scenes, config, device)
    return Trainer(run, config.trainer, task, device, task.identity).train()
