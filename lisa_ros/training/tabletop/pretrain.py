# SPDX-License-Identifier: Apache-2.0
"""Trains `lisa-tabletop` from nothing: cross-entropy 1.0, BCE 2.0, Dice 0.5 as the paper (3.2),
and the lessons of `grounding` beside them.

Beside what `loop` writes, a run's folder holds `answers.png` (pictures of validation answers,
drawn anew at each validation), `tokenizer/` and `model/` (the averaged weights in our own layout).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from lisa_ros.errors import SettingsError
from lisa_ros.model import checkpoint, export, lora
from lisa_ros.model.lisa import LISA, LisaOutput
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception import masks, overlay
from lisa_ros.tabletop import queries, query_sampling
from lisa_ros.tabletop.answer_noise import corrupt_object_name
from lisa_ros.tabletop.scene_graph import SceneGraph
from lisa_ros.training.distributed import init_distributed, rank_zero_first
from lisa_ros.training.losses import BCE_WEIGHT, CE_WEIGHT, DICE_WEIGHT
from lisa_ros.training.tabletop import attention_supervision, batches, dataset, feature_cache
from lisa_ros.training.tabletop.attention_supervision import AttentionSupervision
from lisa_ros.training.tabletop.auxiliary_losses import (
    AuxiliaryHeads,
    has_number_tokens,
    init_matching_heads,
    init_number_embeddings,
    mask_losses,
    valid_size,
)
from lisa_ros.training.tabletop.initialization import (
    PATCH_SIZE,
    clip_preprocessing,
    default_config,
    remap_vocabulary,
    resize_position_embedding,
    write_tokenizer,
)
from lisa_ros.training.trainer import Trainer, TrainerConfig, has_fast_bf16

# of each loss in the sum; `presence_right` is only watched
WEIGHTS = {
    'ce': CE_WEIGHT,
    'bce': BCE_WEIGHT,
    'dice': DICE_WEIGHT,
    'pixels': 0.5,
    'patches': 0.5,
    'words': 0.7,
    'inventory': 0.5,
    'places': 0.5,
    'pointing': 1.0,
    'presence': 1.0,
    'numbers': 1.0,
    'looking': 0.3,
    'naming': 0.5,
    'iou': 0.5,
    'presence_right': 0.0,
}
_EYES = ('clip.', 'mm_projector.', 'sam.')
_STANDING = ('sam.vision_encoder.', 'sam.prompt_encoder.')  # under additions
_CLIP_SIDES = range(PATCH_SIZE, 352 + 1, PATCH_SIZE)  # words have half of the places at least


@dataclass(frozen=True)
class PretrainConfig:
    """What a run depends on, beside its scenes."""

    pace: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            steps=4600,
            learning_rate=1e-3,
            warmup_steps=100,
            decay_fraction=0.6,
            weight_decay=0.05,
            betas=(0.9, 0.95),
            muon=True,
            ema_decay=0.99,
            validate_every=300,
            bf16=has_fast_bf16(),
        )
    )
    vision_warmup_steps: int = 600  # first steps in which only the eyes learn: no words, no masks
    number_warmup_steps: int = (
        0  # first steps after those in which all answers measure, and no mask counts
    )
    measured_per_image: int = (
        0  # of the requests about each picture afterwards, those whose answers measure
    )
    reasoning_per_image: int = 0  # and of the others, those of the sorts that take reasoning
    name_noise_rate: float = 0.0  # of the last answers with a name behind a place, those that slip
    batch_size: int = 16  # in a batch
    queries_per_image: int = 6  # about each picture
    exclude_categories: tuple[str, ...] = ()  # sorts of requests that are not learnt
    fixed_reasoning_pairs: int = (
        0  # pictures with one reasoning request each, which are half of every lesson
    )
    init_from: Path | None = None  # a model folder to start from, rather than from nothing
    clip_image_size: int | None = (
        None  # of the square that CLIP sees, if not as a start has it [px]
    )
    rebuild_tokenizer: bool = False  # the start's words make room for those of today's grammar
    lora_rank: int = 0  # rank of what is learnt beside a start's weights, which stand
    init_vision_from: Path | None = (
        None  # or one whose vision parts, tokenizer and sizes alone are taken
    )
    feature_cache: Path | None = (
        None  # where what the vision parts see is kept; then they stand still
    )
    views_per_scene: int = 1  # of each scene in a memory
    threads: int = 2


class PretrainTask:
    """The pupil of the loop: the model, its extra lessons, scenes to learn from."""

    weights = WEIGHTS

    def __init__(self, run: Path, scenes: Path, recipe: PretrainConfig, device: str = 'cpu'):
        torch.manual_seed(recipe.pace.seed)
        torch.set_num_threads(recipe.threads)
        self.recipe, self.device = recipe, device
        unknown = sorted(set(recipe.exclude_categories) - set(queries.CATEGORIES))
        if unknown:
            raise SettingsError(
                f'no sort of requests {unknown[0]!r}: they are {", ".join(queries.CATEGORIES)}'
            )
        asked = {
            *(
                ('relations', 'two_step')
                if recipe.measured_per_image or recipe.number_warmup_steps
                else ()
            ),
            *(queries.IMPLICIT if recipe.reasoning_per_image else ()),
        }
        if asked & set(recipe.exclude_categories):
            raise SettingsError(
                f'{", ".join(sorted(asked & set(recipe.exclude_categories)))} cannot be left out '
                'where requests are drawn to measure or to reason: leave out '
                '--measured-per-image, --number-warmup-steps and --reasoning-per-image'
            )
        if recipe.lora_rank and (not recipe.init_from or recipe.rebuild_tokenizer):
            raise SettingsError(
                'additions are made to a start and its words: give --init-from alone'
            )
        if recipe.lora_rank and recipe.clip_image_size:
            raise SettingsError('additions leave the sizes as they are: give no --clip-image-size')
        if recipe.clip_image_size is not None and recipe.clip_image_size not in _CLIP_SIDES:
            raise SettingsError(
                f'CLIP cannot see {recipe.clip_image_size} px: expected a multiple of '
                f'{PATCH_SIZE} up to {_CLIP_SIDES[-1]}'
            )
        if recipe.init_from and recipe.init_vision_from:
            raise SettingsError(
                'a start has eyes of its own: give --init-from or --init-vision-from'
            )
        given = recipe.init_from or recipe.init_vision_from
        start = checkpoint.load(given) if given else None
        self.train_set = dataset.SceneSet.load(scenes / 'train')
        self.val_set = dataset.SceneSet.load(scenes / 'val', limit=96)
        words, told = run / 'tokenizer', start is not None and not recipe.rebuild_tokenizer
        with rank_zero_first(*init_distributed(device)[:2]):
            if not told and not words.exists():
                made = words.with_name('tokenizer.new')
                write_tokenizer(made, self.train_set.tables)
                made.replace(words)
        self.tokenizer = start.tokenizer if told else Tokenizer.load(words)
        self.config = start.model.config if told else default_config(self.tokenizer)
        sees = start.model.config if start else self.config
        self.config.clip.image_size = recipe.clip_image_size or sees.clip.image_size
        self.clip_recipe = clip_preprocessing(self.config)
        # eager attention: on a CPU its backward pass takes a third of the time
        self.lisa = LISA(self.config, 'eager' if device == 'cpu' else 'sdpa')
        state = (
            resize_position_embedding(start.model.state_dict(), self.config.image_tokens)
            if start
            else {}
        )
        if recipe.init_from:
            self.lisa.load_state_dict(
                state if told else remap_vocabulary(state, start.tokenizer, self.tokenizer)
            )
        else:
            init_matching_heads(self.lisa)
        if not recipe.init_from or not has_number_tokens(start.tokenizer):
            init_number_embeddings(self.lisa, self.tokenizer)
        if recipe.init_vision_from:
            seeing = {n: t for n, t in state.items() if n.startswith(_EYES)}
            self.lisa.load_state_dict(seeing, strict=False)
        if recipe.lora_rank:
            given = lora.load_lora(recipe.init_from)
            lora.add_lora(self.lisa, recipe.lora_rank, _STANDING, given)
        self.heads = AuxiliaryHeads(self.config, self.tokenizer)
        self.looking = (
            AttentionSupervision(self.tokenizer) if has_number_tokens(self.tokenizer) else None
        )
        self.module = nn.ModuleDict({'lisa': self.lisa, 'heads': self.heads}).to(device)
        self.memory = None
        if recipe.feature_cache:
            with rank_zero_first(*init_distributed(device)[:2]):
                self.memory = feature_cache.load_or_build(
                    recipe.feature_cache,
                    self.lisa,
                    self.clip_recipe,
                    self.train_set,
                    recipe.views_per_scene,
                    bf16=recipe.pace.bf16,
                )
            for still in (self.lisa.clip, self.lisa.sam.vision_encoder, self.heads):
                still.requires_grad_(False)
            self.heads.point_scale.requires_grad_(True)
            self.heads.point_bias.requires_grad_(True)

    def draw(self, step: int, part: int) -> batches.QueryBatch:
        """Return the lesson of a step, the same whenever it is asked for."""
        recipe = self.recipe
        rng = np.random.default_rng((recipe.pace.seed, step, part))
        paired = recipe.batch_size // 2 if recipe.fixed_reasoning_pairs else 0
        if self.memory is not None:
            views, asked = [], []
            for place in range(recipe.batch_size):
                if place < paired:
                    i, some = self._pair(
                        int(rng.integers(recipe.fixed_reasoning_pairs)), self.memory.tables
                    )
                else:
                    i = int(rng.integers(len(self.memory)))
                    some = self._requests(rng, self.memory.tables[i], step)
                views.append(i)
                asked.append(some)
            lesson = self.memory.lesson(self.lisa, self.tokenizer, views, asked)
            return self._looked(lesson)
        scenes, seen = self.train_set, []
        for place in range(recipe.batch_size):
            if place < paired:
                i, some = self._pair(
                    int(rng.integers(recipe.fixed_reasoning_pairs)), scenes.tables
                )
                seen.append((scenes.colour[i], scenes.ids[i], scenes.tables[i], some))
                continue
            i = rng.integers(len(scenes))
            view = dataset.augment(rng, scenes.colour[i], scenes.ids[i], scenes.tables[i])
            seen.append((*view, self._requests(rng, view[2], step)))
        lesson = batches.make_batch(self.config, self.tokenizer, self.clip_recipe, seen)
        return lesson if step < recipe.vision_warmup_steps else self._looked(lesson)

    def _looked(self, lesson: batches.QueryBatch) -> batches.QueryBatch:
        """Return a lesson that says what is to be looked at; found here, where no GPU waits."""
        if self.looking is None:
            return lesson
        side = round(self.config.image_tokens**0.5)
        return replace(lesson, spots=self.looking.attention_targets(lesson, side))

    def _requests(
        self, rng: np.random.Generator, table: SceneGraph, step: int
    ) -> list[queries.TabletopQuery]:
        """Return what the lesson of a step asks about a picture."""
        recipe, measures = self.recipe, self._measures(step)
        measured = (
            recipe.queries_per_image
            if measures
            else min(recipe.measured_per_image, recipe.queries_per_image)
        )
        reasoned = min(recipe.reasoning_per_image, recipe.queries_per_image - measured)
        drawn = [
            *(query_sampling.sample_measured(rng, table) for _ in range(measured)),
            *(query_sampling.sample_reasoning(rng, table) for _ in range(reasoned)),
            *(
                query_sampling.sample_query(rng, table, recipe.exclude_categories)
                for _ in range(recipe.queries_per_image - measured - reasoned)
            ),
        ]
        slips = (
            0.0 if measures else recipe.name_noise_rate
        )  # where no mask counts there is nothing to learn
        return [
            corrupt_object_name(rng, x, table) if slips and rng.random() < slips else x
            for x in drawn
        ]

    def _pair(
        self, number: int, tables: list[SceneGraph]
    ) -> tuple[int, list[queries.TabletopQuery]]:
        """Return a table's number with one request that takes reasoning, always the same pair."""
        rng = np.random.default_rng((self.recipe.pace.seed, _PAIRS, number))
        while True:
            i = int(rng.integers(len(tables)))
            request = query_sampling.sample_reasoning_present(rng, tables[i])
            if request is not None:
                return i, [request]

    def losses(self, lesson: batches.QueryBatch, step: int) -> dict[str, torch.Tensor]:
        """Return the losses of a lesson: of seeing alone at first, then of everything."""
        if isinstance(lesson, feature_cache.CachedBatch):
            tokens = self.lisa.project_clip(lesson.clip_states)
            out = self.lisa.forward_from_features(
                lesson.batch,
                tokens,
                lesson.image_embeddings,
                packed=True,
                inner=attention_supervision.supervised_layer(self.lisa),
            )
            return self._answering(out, lesson, step)
        return (self._looks if step < self.recipe.vision_warmup_steps else self._all)(lesson, step)

    def _looks(self, lesson: batches.TabletopBatch, step: int) -> dict[str, torch.Tensor]:
        """Return the losses of seeing, without a word."""
        embeddings = self.lisa.encode_sam(lesson.batch.sam_pixels)
        tokens = self.lisa.encode_clip(lesson.batch.clip_pixels)
        return self._seeing(embeddings, tokens, lesson, step)

    def _seeing(
        self,
        embeddings: torch.Tensor,
        tokens: torch.Tensor,
        lesson: batches.TabletopBatch,
        step: int,
    ) -> dict[str, torch.Tensor]:
        """Return the losses of SAM's features and of the image tokens."""
        heads = self.heads
        if self.recipe.init_from and step < self.recipe.pace.warmup_steps:
            # heads that begin at random first learn to read good eyes
            tokens, embeddings = tokens.detach(), embeddings.detach()
        words, inventory = heads.words(self.lisa, tokens, lesson)
        return {
            # under additions SAM's encoder stands
            **({} if self.recipe.lora_rank else {'pixels': heads.pixels(embeddings, lesson)}),
            'patches': heads.patches(tokens, lesson),
            'words': words,
            'inventory': inventory,
            'places': heads.places(tokens, lesson),
        }

    def _measures(self, step: int) -> bool:
        """Return whether a step is of those that teach to measure."""
        looks = 0 if self.memory else self.recipe.vision_warmup_steps
        return 0 <= step - looks < self.recipe.number_warmup_steps

    def _all(self, lesson: batches.TabletopBatch, step: int) -> dict[str, torch.Tensor]:
        """Return the losses of seeing, answering and pointing."""
        out = self.lisa(
            lesson.batch, packed=True, inner=attention_supervision.supervised_layer(self.lisa)
        )
        seeing = self._seeing(out.image_embeddings, out.clip_tokens, lesson, step)
        return {**seeing, **self._answering(out, lesson, step)}

    def _answering(
        self, out: LisaOutput, lesson: batches.QueryBatch, step: int
    ) -> dict[str, torch.Tensor]:
        """Return the losses of answering and pointing."""
        measuring = {'numbers': self.heads.measures(self.lisa, out, lesson)}
        if lesson.spots is not None:
            measuring |= self.looking.losses(self.lisa, out, lesson)
        if self._measures(step):
            return {'ce': out.ce_loss, **measuring}
        bce, dice, iou = mask_losses(self.lisa, out, lesson)
        presence, right = self.heads.presence(self.lisa, out, lesson)
        return {
            'ce': out.ce_loss,
            'bce': bce,
            'dice': dice,
            'pointing': self.heads.pointing(out, lesson),
            'presence': presence,
            **measuring,
            'iou': iou,
            'presence_right': right,
        }

    def validate(self, run: Path) -> dict[str, float]:
        """Return figures on validation scenes, teacher forced, and draw some answers."""
        ious: dict[str, list[float]] = {}
        right, tiles = [], []
        for start in range(0, len(self.val_set), 8):
            views = [self._examined(i) for i in range(start, min(start + 8, len(self.val_set)))]
            found, truth, owners, some_right = self._answered(views)
            right.append(some_right)
            asked = [(view, request) for view in views for request in view[3]]
            told = [0] * len(asked)
            for mask, real, owner in zip(found, truth, owners, strict=True):
                (picture, *_), request = asked[owner]
                told[owner] += 1
                if told[owner] <= request.first:
                    continue  # of a turn before the last
                value = masks.iou(mask, real)
                ious.setdefault(request.sort, []).append(value)
                if len(tiles) < 20 and request.sort == queries.CATEGORIES[len(tiles) % 8]:
                    tiles.append(_tile(picture, mask, f'{request.turns[-1].query} ({value:.2f})'))
        if tiles:
            sheet = overlay.contact_sheet(tiles, columns=4)
            cv2.imwrite(str(run / 'answers.png'), sheet[..., ::-1])
        figures = {f'val_{sort}': float(np.mean(ious[sort])) for sort in sorted(ious)}
        return {**figures, 'val_presence': float(np.mean(right))}

    def _examined(self, i: int) -> tuple:
        """Return a validation scene with what it is asked, always the same."""
        scenes = self.val_set
        asked = query_sampling.make_test_queries(np.random.default_rng((1, i)), scenes.tables[i])
        return scenes.colour[i], scenes.ids[i], scenes.tables[i], asked

    def _answered(self, views: list[tuple]) -> tuple[np.ndarray, np.ndarray, list[int], float]:
        """Answer the requests of some views, teacher forced.

        Returns:
            Masks and their truth, (N, h, w) bool in SAM's square without its padding; the request
            of each; the share of the words that tell what is there that are right.
        """
        lesson = batches.make_batch(self.config, self.tokenizer, self.clip_recipe, views).to(
            self.device
        )
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.recipe.pace.bf16):
            out = self.lisa(lesson.batch, packed=True)
            _, right = self.heads.presence(self.lisa, out, lesson)
        size = valid_size(lesson)
        found = self.lisa.postprocess(out.mask_logits, size, size) > 0
        truth = lesson.truth[:, : size[0], : size[1]] > 0
        return found.cpu().numpy(), truth.cpu().numpy(), out.seg_query.tolist(), float(right)

    def export(self, run: Path) -> None:
        """Write the weights in our own layout to `model/`; additions beside the start's own."""
        if not self.recipe.lora_rank:
            export.save(self.lisa, self.tokenizer, self.clip_recipe, run / 'model', bits=8)
            return
        shutil.copytree(self.recipe.init_from, run / 'model', dirs_exist_ok=True)
        added = lora.load_lora(self.recipe.init_from) | lora.lora_state_dict(self.lisa)
        lora.save_lora(
            {n: export.quantize_rows(t, bits=8) for n, t in added.items()}, run / 'model'
        )


def _tile(picture: np.ndarray, mask: np.ndarray, caption: str) -> np.ndarray:
    """Return a picture with a mask of another size on it and words below."""
    full = cv2.resize(mask.astype(np.uint8), picture.shape[1::-1]) > 0
    return overlay.overlay(picture, full[None], caption=[caption])


_PAIRS = 239  # reasoning pairs draw from other seeds than lessons; ReasonSeg's own number of them


def train(run: Path, scenes: Path, recipe: PretrainConfig, device: str = 'cpu') -> bool:
    """Train in a folder, or go on with what it holds; scenes as `lisa-ros scenes` wrote them.

    Returns:
        False if a signal stopped it before its end.
    """
    *_, device = init_distributed(device)
    return Trainer(run, recipe.pace, PretrainTask(run, scenes, recipe, device), device).train()
