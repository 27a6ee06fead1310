# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a LISA on labelled pictures, as the original's train_ds.py does.

LoRA on the query and value projections of the language model; the words (embed_tokens, lm_head),
text_hidden_fcs and SAM's mask decoder are trained whole; all else stays as it is, bit for bit. The
weights that stay may be kept in four bits (nf4, a CUDA GPU).

A run's folder holds, beside what `loop` writes, `answers.png` (validation pictures), `model/` (the
merged weights in our own layout) and `original/` (the same in the released one). What it needs of
memory is worked out in `estimate`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lisa_ros.datasets.annotations import Picture
from lisa_ros.errors import SettingsError
from lisa_ros.evaluation import metrics
from lisa_ros.model import checkpoint, export, from_llava, quantization
from lisa_ros.model.checkpoint import Checkpoint
from lisa_ros.model.lisa import LISA
from lisa_ros.perception import overlay
from lisa_ros.training.distributed import init_distributed
from lisa_ros.training.finetune import batches, samplers
from lisa_ros.training.finetune.mixture import Mixture
from lisa_ros.training.trainer import Trainer, TrainerConfig

# Trained whole; what the original trains beside LoRA.
FULLY_TRAINED = (
    'llm.model.embed_tokens.',
    'llm.lm_head.',
    'text_hidden_fcs.',
    'sam.mask_decoder.',
)
LORA_TARGETS = r'model\.layers\.\d+\.self_attn\.(q_proj|v_proj)'  # within the language model alone
_LONGEST = 512  # places of a dialogue, the picture's among them; the original's model_max_length


@dataclass(frozen=True)
class BaseCheckpoint:
    """The weights that a fine-tuning starts from: a LISA, or a LLaVA and a SAM."""

    name: str | Path  # a folder or hub id
    vision_tower: str | Path | None = None
    sam: str | Path | None = None  # a .pth of segment-anything
    is_llava: bool = False
    template: str | None = None
    seed: int = 0  # of what a LLaVA lacks

    def load(self, device: str | torch.device, precision: str) -> Checkpoint:
        """Return the weights.

        Raises:
            CheckpointError: they are not what they should be.
            SettingsError: the precision cannot be had here, or a LLaVA comes without a SAM.
        """
        given = {
            'vision_tower': self.vision_tower,
            'sam': self.sam,
            'template': self.template,
            'device': device,
            'precision': precision,
        }
        if not self.is_llava:
            return checkpoint.load(self.name, **given)
        if self.sam is None:
            raise SettingsError(
                f'{self.name} is a LLaVA, which has no SAM: give one, such as sam_vit_h_4b8939.pth'
            )
        return from_llava.load_llava(self.name, **given, seed=self.seed)


@dataclass(frozen=True)
class FinetuneConfig:
    """What a fine-tuning depends on, beside its weights and pictures."""

    pace: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            steps=500,
            learning_rate=3e-4,
            warmup_steps=100,
            decay_fraction=1.0,
            accumulate=10,
            validate_every=100,
            save_every=100,
            monitor='val_giou',
        )
    )
    batch_size: int = 1  # in a micro-batch
    queries_per_image: int = 3  # about each picture, at most
    rank: int = 8  # of LoRA
    alpha: int = 16  # its output counts alpha / rank
    dropout: float = 0.05  # on its input
    precision: str = 'fp32'  # of the weights that stay: fp32, bf16 or nf4
    recompute: bool = True  # activations of the language model, to save memory


class FinetuneTask:
    """The pupil of the loop: a LISA of which little learns, and pictures to learn from.

    `draw` may be called from another thread or a forked process; all else from one thread.
    """

    weights = batches.WEIGHTS

    def __init__(
        self,
        origin: BaseCheckpoint,
        mixture: Mixture,
        validation: Sequence[Picture] = (),
        recipe: FinetuneConfig | None = None,
        device: str = 'cpu',
    ):
        """Load the weights and make ready what learns.

        Args:
            origin: where to start.
            mixture: what to learn from.
            validation: what `validate` asks about.
            recipe: the numbers.
            device: cpu or cuda.

        Raises:
            CheckpointError, SettingsError: as `Origin.load`; SettingsError also for a precision
                that cannot be trained with.
        """
        self.recipe = recipe or FinetuneConfig()
        _check_precision(self.recipe, device)
        self._origin, self._mixture, self._validation = origin, mixture, validation
        self._device = torch.device(device)
        start = origin.load(device, self.recipe.precision)
        self.tokenizer, self.clip_recipe = start.tokenizer, start.clip_recipe
        self._tower = start.vision_tower
        self.module = self.lisa = start.model
        self.config = start.model.config
        add_lora(self.lisa, self.recipe)

    def draw(self, step: int, part: int) -> batches.FinetuneBatch:
        """Return the lesson of a micro-batch, the same whenever it is asked for."""
        samples = self._mixture.draw(step, part, self.recipe.batch_size)
        return self._lesson(samples)

    def _lesson(self, samples: Sequence[batches.Sample]) -> batches.FinetuneBatch:
        places = min(_LONGEST, self.config.llama.max_position_embeddings)
        room = max(places, self.config.image_tokens + 128) - self.config.image_tokens + 1
        return batches.make_batch(
            self.config, self.tokenizer, self.clip_recipe, samples, max_length=room
        )

    def losses(self, lesson: batches.FinetuneBatch, step: int) -> dict[str, Tensor]:
        """Return the original's losses; all queries of a picture share one look at it."""
        return batches.losses(self.lisa, lesson)

    @torch.no_grad()
    def validate(self, run: Path) -> dict[str, float]:
        """Return gIoU and cIoU of the validation pictures, and draw some of them.

        As in the original's validation the answer is given ("[SEG].") and its masks are compared;
        what the model would have said is not asked.
        """
        overlaps, tiles = [], []
        for one in self._validation:
            sample = samplers.validation_sample(one)
            lesson = self._lesson([sample]).to(self._device)
            with torch.autocast(self._device.type, torch.bfloat16, self.recipe.pace.bf16):
                seen = batches.predict_masks(self.lisa, lesson)[0]
            for query, mask, truth in zip(one.queries, seen, sample.truth, strict=True):
                overlaps.append(metrics.overlap(mask, truth))
                if len(tiles) < 20:
                    caption = f'{query.text} ({overlaps[-1].iou:.2f})'
                    tiles.append(overlay.overlay(sample.image, mask[None], caption=[caption]))
        if not overlaps:
            return {}
        _save_picture(overlay.contact_sheet(tiles, columns=4), run / 'answers.png')
        return {'val_giou': metrics.giou(overlaps), 'val_ciou': metrics.ciou(overlaps)}

    def export(self, run: Path) -> None:
        """Write the merged weights to `model/`, and in the released layout to `original/`.

        CLIP lies in `original/` where the origin had it among its own weights; there is none of it
        where the released layout cannot hold the model.
        """
        merged = self.merge_lora()
        export.save(merged, self.tokenizer, self.clip_recipe, run / 'model', dtype=None)
        if not export.has_original_form(self.config):
            return
        tower, original = self._tower, run / 'original'
        if tower is None:
            tower = 'clip-vision-tower'
            export.save_clip(merged, self.clip_recipe, original / tower)
        export.save_original(merged, self.tokenizer, original, vision_tower=tower)

    @torch.no_grad()
    def merge_lora(self) -> LISA:
        """Return a LISA with LoRA in its weights, in the precision that the origin was loaded in.

        What learns goes on unchanged; tensors that stay are shared with it. Of a base in four
        bits the weights come anew from where they were loaded, unquantised, in bfloat16.
        """
        precision = self.recipe.precision
        state = _without_lora(self.lisa)
        base = state
        if precision == 'nf4':
            precision = 'bf16'
            base = self._origin.load('cpu', precision).model.state_dict()
            trained = {n for n, p in self.lisa.named_parameters() if p.requires_grad}
            state = {name: state[name].cpu() if name in trained else base[name] for name in base}
        for name, delta in _lora_deltas(self.lisa):
            weight = base[name]
            state[name] = weight.float() + delta.to(weight.device, torch.float32)
        state = {n: t.to(quantization.storage_dtype(n, precision)) for n, t in state.items()}
        if self.config.llama.tie_word_embeddings:
            state.pop('llm.lm_head.weight', None)
        # scores were calibrated, if they were, with other weights
        config = replace(self.config, confidence_threshold=0.0, calibration=())
        return checkpoint.model_from_state_dict(config, state)


def _check_precision(recipe: FinetuneConfig, device: str) -> None:
    """Refuse what cannot be trained with.

    Raises:
        SettingsError: with the cure.
    """
    if recipe.precision not in ('fp32', 'bf16', 'nf4'):
        raise SettingsError(
            f'precision {recipe.precision!r} cannot be trained with; it is one of fp32, bf16, nf4'
        )
    if recipe.precision == 'nf4':
        quantization.check_precision('nf4', device)
    if recipe.precision != 'fp32' and not recipe.pace.bf16:
        raise SettingsError(
            f'weights in {recipe.precision} need matrix products in bfloat16: leave bf16 on, or '
            'take fp32'
        )


def add_lora(lisa: LISA, recipe: FinetuneConfig) -> None:
    """Put LoRA into the language model, and let only it and what is trained WHOLE learn.

    What learns is kept in float32 whatever the rest is in: AdamW's steps of a thousandth of a
    weight's size would be lost in bfloat16's eight bits.

    Raises:
        SettingsError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import
    except ImportError as error:
        raise SettingsError(
            "fine-tuning needs the package peft: pip install 'lisa_ros[train]'"
        ) from error

    lisa.requires_grad_(False)
    lora = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=LORA_TARGETS,
        bias='none',
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.pace.seed)
        inject_adapter_in_model(lora, lisa.llm)
    for name, parameter in lisa.named_parameters():
        if name.startswith(FULLY_TRAINED) or '.lora_' in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    if recipe.recompute:
        with warnings.catch_warnings():  # of another name for it, which not all of 5.* have
            warnings.simplefilter('ignore', FutureWarning)
            lisa.llm.model.gradient_checkpointing_enable({'use_reentrant': False})


def _without_lora(lisa: LISA) -> dict[str, Tensor]:
    """Return the weights under the names that they have in a LISA without LoRA."""
    return {
        name.replace('.base_layer.', '.'): tensor.detach()
        for name, tensor in lisa.state_dict().items()
        if '.lora_' not in name
    }


def _lora_deltas(lisa: LISA) -> Iterator[tuple[str, Tensor]]:
    """Yield what LoRA adds to each weight that it is on, with the weight's name."""
    from peft.tuners.lora import LoraLayer

    for name, module in lisa.named_modules():
        if isinstance(module, LoraLayer):
            yield f'{name}.weight', module.get_delta_weight('default')


def _save_picture(rgb: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(rgb).save(path)


# ---- before the first step


def profile_step(pupil: FinetuneTask) -> dict[str, float]:
    """Do a step's work once and learn nothing from it; return its seconds and its peak memory.

    Returns:
        `seconds`: of a step, all its micro-batches; the optimizer, a small part, left out.
        `gigabytes`: the most that tensors took on the GPU, gradients included, AdamW's states not
            yet; absent on a CPU.
    """
    cuda = pupil._device.type == 'cuda'
    pupil.module.train()
    for warm in (False, True):  # the first time kernels are chosen and memory is got
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        elif warm:
            break
        lesson = pupil.draw(0, 0).to(pupil._device)
        began = time.perf_counter()
        with torch.autocast(pupil._device.type, torch.bfloat16, pupil.recipe.pace.bf16):
            parts = pupil.losses(lesson, 0)
        sum(pupil.weights[name] * value for name, value in parts.items()).backward()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        pupil.module.zero_grad(set_to_none=True)
    figures = {'seconds': seconds * pupil.recipe.pace.accumulate}
    if cuda:
        figures['gigabytes'] = torch.cuda.max_memory_allocated() / 1e9
    return figures


def finetune(
    run: Path,
    origin: BaseCheckpoint,
    mixture: Mixture,
    validation: Sequence[Picture] = (),
    recipe: FinetuneConfig | None = None,
    device: str = 'cpu',
) -> bool:
    """Fine-tune in a folder, or go on with what it holds; memory and time are printed first.

    Returns:
        False if a signal stopped it before its end.

    Raises:
        SettingsError: `patience` is given and nothing to validate on.
    """
    from lisa_ros.training.finetune import memory_estimate

    recipe = recipe or FinetuneConfig()
    if not validation:  # nothing tells which weights are best: keep the last
        if recipe.pace.patience is not None:
            raise SettingsError('patience needs pictures to validate on: give --val')
        recipe = replace(recipe, pace=replace(recipe.pace, monitor=None))
    *_, device = init_distributed(device)
    pupil = FinetuneTask(origin, mixture, validation, recipe, device)
    plan = memory_estimate.StepShape(
        precision=recipe.precision,
        rank=recipe.rank,
        batch_size=recipe.batch_size,
        queries_per_image=recipe.queries_per_image,
        bf16=recipe.pace.bf16,
    )
    print(memory_estimate.table(pupil.config, plan))
    seen = profile_step(pupil)
    peak = f', {seen["gigabytes"]:.2f} GB at most before AdamW' if 'gigabytes' in seen else ''
    print(f'a step takes about {seen["seconds"]:.1f} s{peak}')
    return Trainer(run, recipe.pace, pupil, device).train()
