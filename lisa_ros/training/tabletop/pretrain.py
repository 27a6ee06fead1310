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
from lisa_ros.model.lisa import LISA, TeacherForced
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception import masks, overlay
from lisa_ros.tabletop import queries, query_sampling
from lisa_ros.tabletop.answer_noise import slip
from lisa_ros.tabletop.scene_graph import Table
from lisa_ros.training.distributed import first_alone, join
from lisa_ros.training.losses import BCE_WEIGHT, CE_WEIGHT, DICE_WEIGHT
from lisa_ros.training.tabletop import attention_supervision, batches, dataset, feature_cache
from lisa_ros.training.tabletop.attention_supervision import Looking
from lisa_ros.training.tabletop.auxiliary_losses import (
    Grounding,
    can_count,
    extent,
    mask_losses,
    start_counting,
    start_matching,
)
from lisa_ros.training.tabletop.initialization import (
    PATCH_SIZE,
    clip_recipe,
    resized,
    reworded,
    tabletop_config,
    write_tokenizer,
)
from lisa_ros.training.trainer import Loop, Pace, bf16_pays

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
class Recipe:
    """What a run depends on, beside its scenes."""

    pace: Pace = field(
        default_factory=lambda: Pace(
            steps=4600,
            rate=1e-3,
            warm_up=100,
            cool_down=0.6,
            weight_decay=0.05,
            betas=(0.9, 0.95),
            muon=True,
            average=0.99,
            validate_every=300,
            bf16=bf16_pays(),
        )
    )
    looks: int = 600  # first steps in which only the eyes learn: no words, no masks
    places: int = 0  # first steps after those in which all answers measure, and no mask counts
    measured: int = 0  # of the requests about each picture afterwards, those whose answers measure
    reasoned: int = 0  # and of the others, those of the sorts that take reasoning
    slips: float = 0.0  # of the last answers with a name behind a place, those that slip
    pictures: int = 16  # in a batch
    requests: int = 6  # about each picture
    without: tuple[str, ...] = ()  # sorts of requests that are not learnt
    pairs: int = 0  # pictures with one reasoning request each, which are half of every lesson
    start: Path | None = None  # a model folder to start from, rather than from nothing
    clip_side: int | None = None  # of the square that CLIP sees, if not as a start has it [px]
    new_words: bool = False  # the start's words make room for those of today's grammar
    additions: int = 0  # rank of what is learnt beside a start's weights, which stand
    eyes: Path | None = None  # or one whose vision parts, tokenizer and sizes alone are taken
    memory: Path | None = None  # where what the vision parts see is kept; then they stand still
    views: int = 1  # of each scene in a memory
    threads: int = 2


class Tabletop:
    """The pupil of the loop: the model, its extra lessons, scenes to learn from."""

    weights = WEIGHTS

    def __init__(self, run: Path, scenes: Path, recipe: Recipe, device: str = 'cpu'):
        torch.manual_seed(recipe.pace.seed)
        torch.set_num_threads(recipe.threads)
        self.recipe, self.device = recipe, device
        unknown = sorted(set(recipe.without) - set(queries.SORTS))
        if unknown:
            raise SettingsError(
                f'no sort of requests {unknown[0]!r}: they are {", ".join(queries.SORTS)}'
            )
        asked = {
            *(('relations', 'two_step') if recipe.measured or recipe.places else ()),
            *(queries.IMPLICIT if recipe.reasoned else ()),
        }
        if asked & set(recipe.without):
            raise SettingsError(
                f'{", ".join(sorted(asked & set(recipe.without)))} cannot be left out where '
                'requests are drawn to measure or to reason: leave out --measured, --places and '
                '--reasoned'
            )
        if recipe.additions and (not recipe.start or recipe.new_words):
            raise SettingsError('additions are made to a start and its words: give --start alone')
        if recipe.additions and recipe.clip_side:
            raise SettingsError('additions leave the sizes as they are: give no --clip-side')
        if recipe.clip_side is not None and recipe.clip_side not in _CLIP_SIDES:
            raise SettingsError(
                f'CLIP cannot see {recipe.clip_side} px: expected a multiple of {PATCH_SIZE} '
                f'up to {_CLIP_SIDES[-1]}'
            )
        if recipe.start and recipe.eyes:
            raise SettingsError('a start has eyes of its own: give --start or --eyes')
        given = recipe.start or recipe.eyes
        start = checkpoint.load(given) if given else None
        self.train_set = dataset.SceneSet.load(scenes / 'train')
        self.val_set = dataset.SceneSet.load(scenes / 'val', limit=96)
        words, told = run / 'tokenizer', start is not None and not recipe.new_words
        with first_alone(*join(device)[:2]):
            if not told and not words.exists():
                made = words.with_name('tokenizer.new')
                write_tokenizer(made, self.train_set.tables)
                made.replace(words)
        self.tokenizer = start.tokenizer if told else Tokenizer.load(words)
        self.config = start.model.config if told else tabletop_config(self.tokenizer)
        sees = start.model.config if start else self.config
        self.config.clip.image_size = recipe.clip_side or sees.clip.image_size
        self.clip_recipe = clip_recipe(self.config)
        # eager attention: on a CPU its backward pass takes a third of the time
        self.lisa = LISA(self.config, 'eager' if device == 'cpu' else 'sdpa')
        state = resized(start.model.state_dict(), self.config.image_tokens) if start else {}
        if recipe.start:
            self.lisa.load_state_dict(
                state if told else reworded(state, start.tokenizer, self.tokenizer)
            )
        else:
            start_matching(self.lisa)
        if not recipe.start or not can_count(start.tokenizer):
            start_counting(self.lisa, self.tokenizer)
        if recipe.eyes:
            seeing = {n: t for n, t in state.items() if n.startswith(_EYES)}
            self.lisa.load_state_dict(seeing, strict=False)
        if recipe.additions:
            given = lora.read(recipe.start)
            lora.begin(self.lisa, recipe.additions, _STANDING, given)
        self.heads = Grounding(self.config, self.tokenizer)
        self.looking = Looking(self.tokenizer) if can_count(self.tokenizer) else None
        self.module = nn.ModuleDict({'lisa': self.lisa, 'heads': self.heads}).to(device)
        self.memory = None
        if recipe.memory:
            with first_alone(*join(device)[:2]):
                self.memory = feature_cache.remember(
                    recipe.memory,
                    self.lisa,
                    self.clip_recipe,
                    self.train_set,
                    recipe.views,
                    bf16=recipe.pace.bf16,
                )
            for still in (self.lisa.clip, self.lisa.sam.vision_encoder, self.heads):
                still.requires_grad_(False)
            self.heads.point_scale.requires_grad_(True)
            self.heads.point_bias.requires_grad_(True)

    def draw(self, step: int, part: int) -> batches.Asked:
        """Return the lesson of a step, the same whenever it is asked for."""
        recipe = self.recipe
        rng = np.random.default_rng((recipe.pace.seed, step, part))
        paired = recipe.pictures // 2 if recipe.pairs else 0
        if self.memory is not None:
            views, asked = [], []
            for place in range(recipe.pictures):
                if place < paired:
                    i, some = self._pair(int(rng.integers(recipe.pairs)), self.memory.tables)
                else:
                    i = int(rng.integers(len(self.memory)))
                    some = self._requests(rng, self.memory.tables[i], step)
                views.append(i)
                asked.append(some)
            lesson = self.memory.lesson(self.lisa, self.tokenizer, views, asked)
            return self._looked(lesson)
        scenes, seen = self.train_set, []
        for place in range(recipe.pictures):
            if place < paired:
                i, some = self._pair(int(rng.integers(recipe.pairs)), scenes.tables)
                seen.append((scenes.colour[i], scenes.ids[i], scenes.tables[i], some))
                continue
            i = rng.integers(len(scenes))
            view = dataset.augment(rng, scenes.colour[i], scenes.ids[i], scenes.tables[i])
            seen.append((*view, self._requests(rng, view[2], step)))
        lesson = batches.lesson(self.config, self.tokenizer, self.clip_recipe, seen)
        return lesson if step < recipe.looks else self._looked(lesson)

    def _looked(self, lesson: batches.Asked) -> batches.Asked:
        """Return a lesson that says what is to be looked at; found here, where no GPU waits."""
        if self.looking is None:
            return lesson
        side = round(self.config.image_tokens**0.5)
        return replace(lesson, spots=self.looking.spots(lesson, side))

    def _requests(
        self, rng: np.random.Generator, table: Table, step: int
    ) -> list[queries.Request]:
        """Return what the lesson of a step asks about a picture."""
        recipe, measures = self.recipe, self._measures(step)
        measured = recipe.requests if measures else min(recipe.measured, recipe.requests)
        reasoned = min(recipe.reasoned, recipe.requests - measured)
        drawn = [
            *(query_sampling.placing(rng, table) for _ in range(measured)),
            *(query_sampling.thinking(rng, table) for _ in range(reasoned)),
            *(
                query_sampling.draw_request(rng, table, recipe.without)
                for _ in range(recipe.requests - measured - reasoned)
            ),
        ]
        slips = 0.0 if measures else recipe.slips  # where no mask counts there is nothing to learn
        return [slip(rng, x, table) if slips and rng.random() < slips else x for x in drawn]

    def _pair(self, number: int, tables: list[Table]) -> tuple[int, list[queries.Request]]:
        """Return a table's number with one request that takes reasoning, always the same pair."""
        rng = np.random.default_rng((self.recipe.pace.seed, _PAIRS, number))
        while True:
            i = int(rng.integers(len(tables)))
            request = query_sampling.reasoning(rng, tables[i])
            if request is not None:
                return i, [request]

    def losses(self, lesson: batches.Asked, step: int) -> dict[str, torch.Tensor]:
        """Return the losses of a lesson: of seeing alone at first, then of everything."""
        if isinstance(lesson, feature_cache.Remembered):
            tokens = self.lisa.project_clip(lesson.clip_states)
            out = self.lisa.answer(
                lesson.batch,
                tokens,
                lesson.image_embeddings,
                packed=True,
                inner=attention_supervision.layer(self.lisa),
            )
            return self._answering(out, lesson, step)
        return (self._looks if step < self.recipe.looks else self._all)(lesson, step)

    def _looks(self, lesson: batches.Lesson, step: int) -> dict[str, torch.Tensor]:
        """Return the losses of seeing, without a word."""
        embeddings = self.lisa.encode_sam(lesson.batch.sam_pixels)
        tokens = self.lisa.encode_clip(lesson.batch.clip_pixels)
        return self._seeing(embeddings, tokens, lesson, step)

    def _seeing(
        self, embeddings: torch.Tensor, tokens: torch.Tensor, lesson: batches.Lesson, step: int
    ) -> dict[str, torch.Tensor]:
        """Return the losses of SAM's features and of the image tokens."""
        heads = self.heads
        if self.recipe.start and step < self.recipe.pace.warm_up:
            # heads that begin at random first learn to read good eyes
            tokens, embeddings = tokens.detach(), embeddings.detach()
        words, inventory = heads.words(self.lisa, tokens, lesson)
        return {
            # under additions SAM's encoder stands
            **({} if self.recipe.additions else {'pixels': heads.pixels(embeddings, lesson)}),
            'patches': heads.patches(tokens, lesson),
            'words': words,
            'inventory': inventory,
            'places': heads.places(tokens, lesson),
        }

    def _measures(self, step: int) -> bool:
        """Return whether a step is of those that teach to measure."""
        looks = 0 if self.memory else self.recipe.looks
        return 0 <= step - looks < self.recipe.places

    def _all(self, lesson: batches.Lesson, step: int) -> dict[str, torch.Tensor]:
        """Return the losses of seeing, answering and pointing."""
        out = self.lisa(lesson.batch, packed=True, inner=attention_supervision.layer(self.lisa))
        seeing = self._seeing(out.image_embeddings, out.clip_tokens, lesson, step)
        return {**seeing, **self._answering(out, lesson, step)}

    def _answering(
        self, out: TeacherForced, lesson: batches.Asked, step: int
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
                if len(tiles) < 20 and request.sort == queries.SORTS[len(tiles) % 8]:
                    tiles.append(_tile(picture, mask, f'{request.turns[-1].query} ({value:.2f})'))
        if tiles:
            sheet = overlay.contact_sheet(tiles, columns=4)
            cv2.imwrite(str(run / 'answers.png'), sheet[..., ::-1])
        figures = {f'val_{sort}': float(np.mean(ious[sort])) for sort in sorted(ious)}
        return {**figures, 'val_presence': float(np.mean(right))}

    def _examined(self, i: int) -> tuple:
        """Return a validation scene with what it is asked, always the same."""
        scenes = self.val_set
        asked = query_sampling.exam(np.random.default_rng((1, i)), scenes.tables[i])
        return scenes.colour[i], scenes.ids[i], scenes.tables[i], asked

    def _answered(self, views: list[tuple]) -> tuple[np.ndarray, np.ndarray, list[int], float]:
        """Answer the requests of some views, teacher forced.

        Returns:
            Masks and their truth, (N, h, w) bool in SAM's square without its padding; the request
            of each; the share of the words that tell what is there that are right.
        """
        lesson = batches.lesson(self.config, self.tokenizer, self.clip_recipe, views).to(
            self.device
        )
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.recipe.pace.bf16):
            out = self.lisa(lesson.batch, packed=True)
            _, right = self.heads.presence(self.lisa, out, lesson)
        size = extent(lesson)
        found = self.lisa.postprocess(out.mask_logits, size, size) > 0
        truth = lesson.truth[:, : size[0], : size[1]] > 0
        return found.cpu().numpy(), truth.cpu().numpy(), out.seg_query.tolist(), float(right)

    def export(self, run: Path) -> None:
        """Write the weights in our own layout to `model/`; additions beside the start's own."""
        if not self.recipe.additions:
            export.save(self.lisa, self.tokenizer, self.clip_recipe, run / 'model', bits=8)
            return
        shutil.copytree(self.recipe.start, run / 'model', dirs_exist_ok=True)
        added = lora.read(self.recipe.start) | lora.of(self.lisa)
        lora.write({n: export.rounded(t, bits=8) for n, t in added.items()}, run / 'model')


def _tile(picture: np.ndarray, mask: np.ndarray, caption: str) -> np.ndarray:
    """Return a picture with a mask of another size on it and words below."""
    full = cv2.resize(mask.astype(np.uint8), picture.shape[1::-1]) > 0
    return overlay.overlay(picture, full[None], caption=[caption])


_PAIRS = 239  # reasoning pairs draw from other seeds than lessons; ReasonSeg's own number of them


def train(run: Path, scenes: Path, recipe: Recipe, device: str = 'cpu') -> bool:
    """Train in a folder, or go on with what it holds; scenes as `lisa-ros scenes` wrote them.

    Returns:
        False if a signal stopped it before its end.
    """
    *_, device = join(device)
    return Loop(run, recipe.pace, Tabletop(run, scenes, recipe, device), device).train()
