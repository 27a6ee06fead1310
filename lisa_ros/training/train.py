# SPDX-License-Identifier: Apache-2.0
"""Trains `lisa-tabletop` from scratch: cross-entropy 1.0, BCE 2.0, Dice 0.5 as the paper (3.2),
and the lessons of `grounding` beside them.

A run is a folder: `last.pt` (everything needed to go on), `curves.csv`, `answers.png` (pictures
of validation answers, drawn anew at each validation) and `model/` (the averaged weights in our own
layout). Call again with the same folder to resume.
"""

from __future__ import annotations

import copy
import csv
import math
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import sentencepiece
import torch
from tqdm import tqdm
from transformers import CLIPVisionConfig, LlamaConfig

from lisa_ros import images, masks
from lisa_ros.errors import DataError
from lisa_ros.model import checkpoint
from lisa_ros.model.lisa import LISA, LisaConfig, sam_config
from lisa_ros.model.tokenizer import SEG, Tokenizer
from lisa_ros.training import data, requests
from lisa_ros.training.grounding import Grounding, extent, mask_losses, start_matching
from lisa_ros.training.losses import BCE_WEIGHT, CE_WEIGHT, DICE_WEIGHT
from lisa_ros.training.things import COLOURS, KINDS

# of each loss in the sum; `first_right` is only watched
WEIGHTS = {
    'ce': CE_WEIGHT,
    'bce': BCE_WEIGHT,
    'dice': DICE_WEIGHT,
    'pixels': 0.5,
    'patches': 0.5,
    'words': 0.7,
    'pointing': 1.0,
    'presence': 1.0,
    'first_right': 0.0,
}
ADDED = ('[SEG]', '<im_start>', '<im_end>')


@dataclass(frozen=True)
class Recipe:
    """What a run depends on, beside its scenes."""

    steps: int = 3000
    looks: int = 400  # first steps in which only the eyes learn: no words, no masks
    pictures: int = 16  # in a batch
    requests: int = 3  # about each picture
    rate: float = 1e-3  # peak learning rate of AdamW
    warm_up: int = 100  # steps
    decay: float = 0.05
    average: float = 0.995  # of the weights that are validated and shipped
    validate_every: int = 250
    save_every: int = 100
    seed: int = 0
    threads: int = 2
    bf16: bool = True  # matrix products in bfloat16; twice as fast where the processor knows it


def write_tokenizer(folder: Path, vocabulary: int = 900) -> Tokenizer:
    """Train a SentencePiece model on our own grammar and write it as LISA's tokenizer folder."""
    import json

    rng = np.random.default_rng(0)
    names = list(KINDS)
    lines = []
    for _ in range(6000):
        chosen = rng.choice(len(names), 5, replace=False)
        objects = [
            {
                'id': i + 1,
                'kind': names[k],
                'thing': '',
                'colour': str(rng.choice(list(COLOURS))) if names[k] in _PAINTED else None,
                'area': 1000 - i,
            }
            for i, k in enumerate(chosen)
        ]
        request = requests.draw_request(rng, objects)
        for turn in request.turns:
            lines += [f'USER: {turn.query} ASSISTANT: {turn.answer_raw.replace(SEG, "")}']
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / 'tokenizer'),
        vocab_size=vocabulary,
        model_type='bpe',
        byte_fallback=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / 'tokenizer.vocab').unlink()
    pieces = sentencepiece.SentencePieceProcessor(str(folder / 'tokenizer.model'))
    size = pieces.get_piece_size()
    added = {text: size + i for i, text in enumerate(ADDED)}
    (folder / 'added_tokens.json').write_text(json.dumps(added))
    flags = {'lstrip': False, 'normalized': False, 'rstrip': False, 'single_word': False}
    roles = {
        'bos_token': {'content': '<s>', **flags},
        'eos_token': {'content': '</s>', **flags},
        'unk_token': {'content': '<unk>', **flags},
        'pad_token': '<unk>',
    }
    (folder / 'special_tokens_map.json').write_text(json.dumps(roles))
    (folder / 'tokenizer_config.json').write_text(
        json.dumps({'clean_up_tokenization_spaces': False, 'model_max_length': 512})
    )
    return Tokenizer.load(folder)


_PAINTED = ('mug', 'bowl', 'plate')


def tabletop_config(tokenizer: Tokenizer) -> LisaConfig:
    """Return the sizes of `lisa-tabletop`: a few million weights, quick on one core."""
    width = 192
    return LisaConfig(
        clip=CLIPVisionConfig(
            hidden_size=192,
            intermediate_size=576,
            num_hidden_layers=5,
            num_attention_heads=3,
            image_size=160,
            patch_size=16,
            projection_dim=192,
        ),
        llama=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_key_value_heads=3,
            max_position_embeddings=512,
            rms_norm_eps=1e-5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        sam=sam_config(
            image_size=192,
            patch_size=12,
            width=192,
            depth=6,
            heads=3,
            global_layers=(2, 5),
            window=8,
            vision_mlp=576,
            prompt_width=128,
            decoder_mlp=256,
            relative_positions=False,
            iou_width=128,
        ),
        seg_token_id=tokenizer.seg_token_id,
        out_dim=128,
        template='plain',
    )


CLIP_RECIPE = images.ClipRecipe(size=(160, 160), crop=None)  # the whole picture, squeezed


@dataclass(frozen=True)
class Student:
    """The model with what it needs to read and see."""

    lisa: LISA
    tokenizer: Tokenizer
    clip: images.ClipRecipe


class Trainer:
    """One run: `train` goes on from wherever its folder stands. Single process, CPU or one GPU."""

    def __init__(self, run: Path, scenes: Path, recipe: Recipe, device: str = 'cpu'):
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(recipe.threads)
        self.run, self.recipe, self.device = run, recipe, device
        run.mkdir(parents=True, exist_ok=True)
        words = run / 'tokenizer'
        self.tokenizer = (
            Tokenizer.load(words)
            if (words / 'added_tokens.json').exists()
            else write_tokenizer(words)
        )
        self.config = tabletop_config(self.tokenizer)
        self.lisa = LISA(self.config).to(device)
        start_matching(self.lisa)
        self.average = copy.deepcopy(self.lisa).requires_grad_(False).eval()
        self.heads = Grounding(self.config, self.tokenizer).to(device)
        self.train_set = data.SceneSet.load(scenes / 'train')
        self.val_set = data.SceneSet.load(scenes / 'val', limit=96)
        decayed, plain = [], []
        for parameter in [*self.lisa.parameters(), *self.heads.parameters()]:
            if parameter.requires_grad:
                (decayed if parameter.ndim > 1 else plain).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {'params': decayed, 'weight_decay': recipe.decay},
                {'params': plain, 'weight_decay': 0},
            ],
            lr=recipe.rate,
            betas=(0.9, 0.98),
            fused=True,  # one pass over the weights: a tenth of a step on a CPU
        )
        self.step = 0
        if (run / 'last.pt').exists():
            self._resume()

    # ---- one step

    def rate(self, step: int) -> float:
        """Return the learning rate: a linear start, then half a cosine down to nothing."""
        recipe = self.recipe
        if step < recipe.warm_up:
            return recipe.rate * (step + 1) / recipe.warm_up
        share = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
        return recipe.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))

    def draw(self, step: int) -> data.Lesson:
        """Return the lesson of a step, the same whenever it is asked for."""
        rng = np.random.default_rng((self.recipe.seed, step))
        views = []
        for _ in range(self.recipe.pictures):
            i = rng.integers(len(self.train_set))
            colour, ids = data.augment(rng, self.train_set.colour[i], self.train_set.ids[i])
            scale = self.train_set.ids[i].size / ids.size
            objects = data.seen(self.train_set.objects[i], ids, scale)
            asked = [requests.draw_request(rng, objects) for _ in range(self.recipe.requests)]
            views.append((colour, ids, objects, asked))
        return data.lesson(self.config, self.tokenizer, CLIP_RECIPE, views)

    def learn(self, lesson: data.Lesson) -> dict[str, float]:
        """Make one step of the optimizer; return the losses by name."""
        lisa, heads = self.lisa, self.heads
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.recipe.bf16):
            parts = self._looks(lesson) if self.step < self.recipe.looks else self._all(lesson)
        loss = sum(WEIGHTS[name] * value for name, value in parts.items())
        if not torch.isfinite(loss):
            raise DataError(f'the loss is {loss.item()} at step {self.step}: lower the rate')
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*lisa.parameters(), *heads.parameters()], 1.0)
        for group in self.optimizer.param_groups:
            group['lr'] = self.rate(self.step)
        self.optimizer.step()
        keep = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(lisa.parameters()), 1 - keep
            )
        return {name: float(value.detach()) for name, value in parts.items()}

    def _looks(self, lesson: data.Lesson) -> dict[str, torch.Tensor]:
        """Return the losses of seeing alone."""
        embeddings = self.lisa.encode_sam(lesson.batch.sam_pixels)
        tokens = self.lisa.encode_clip(lesson.batch.clip_pixels)
        return {
            'pixels': self.heads.pixels(embeddings, lesson),
            'patches': self.heads.patches(tokens, lesson),
            'words': self.heads.words(self.lisa, tokens, lesson),
        }

    def _all(self, lesson: data.Lesson) -> dict[str, torch.Tensor]:
        """Return the losses of seeing, answering and pointing."""
        lisa, heads = self.lisa, self.heads
        out = lisa(lesson.batch)
        bce, dice = mask_losses(lisa, out, lesson)
        presence, right = heads.presence(lisa, out, lesson)
        return {
            'pixels': heads.pixels(out.image_embeddings, lesson),
            'patches': heads.patches(out.clip_tokens, lesson),
            'words': heads.words(lisa, out.clip_tokens, lesson),
            'ce': out.ce_loss,
            'bce': bce,
            'dice': dice,
            'pointing': heads.pointing(out, lesson),
            'presence': presence,
            'first_right': right,
        }

    # ---- the loop

    def train(self, until: int | None = None) -> None:
        """Learn up to the recipe's last step, or up to step `until`."""
        last = min(until or self.recipe.steps, self.recipe.steps)
        smooth: dict[str, float] = {}
        began = time.monotonic()
        with tqdm(total=last, initial=self.step, desc=self.run.name, unit='step') as bar:
            for lesson in self._lessons(last):
                for name, value in self.learn(lesson).items():
                    smooth[name] = 0.95 * smooth.get(name, value) + 0.05 * value
                self.step += 1
                bar.update()
                if self.step % 10 == 0:
                    bar.set_postfix({name: f'{value:.3f}' for name, value in smooth.items()})
                if self.step % self.recipe.validate_every == 0 or self.step == last:
                    figures = self.validate() if self.step > self.recipe.looks else {}
                    minutes = (time.monotonic() - began) / 60
                    self._note({'step': self.step, 'minutes': minutes, **smooth, **figures})
                    bar.write(
                        f'{self.step}: ' + ', '.join(f'{k} {v:.3f}' for k, v in figures.items())
                    )
                if self.step % self.recipe.save_every == 0 or self.step == last:
                    self.save()

    def _lessons(self, last: int) -> Iterator[data.Lesson]:
        """Yield the lessons from here on, made ready by a thread while the model learns."""
        ready: queue.Queue[data.Lesson | Exception] = queue.Queue(maxsize=3)

        def fill() -> None:
            try:
                for step in range(self.step, last):
                    ready.put(self.draw(step))
            except Exception as error:  # noqa: BLE001  # raised again where the lessons are taken
                ready.put(error)

        threading.Thread(target=fill, daemon=True).start()
        for _ in range(self.step, last):
            lesson = ready.get()
            if isinstance(lesson, Exception):
                raise lesson
            yield lesson.to(self.device)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return figures of the averaged weights on validation scenes, teacher forced."""
        lisa, tiles = self.average, []
        ious: dict[str, list[float]] = {'explicit': [], 'implicit': []}
        right: list[float] = []
        for start in range(0, len(self.val_set), 8):
            views = []
            for i in range(start, min(start + 8, len(self.val_set))):
                rng = np.random.default_rng((1, i))
                asked = requests.exam(rng, self.val_set.objects[i])
                views.append(
                    (self.val_set.colour[i], self.val_set.ids[i], self.val_set.objects[i], asked)
                )
            lesson = data.lesson(self.config, self.tokenizer, CLIP_RECIPE, views)
            lesson = lesson.to(self.device)
            out = lisa(lesson.batch)
            _, share = self.heads.presence(lisa, out, lesson)
            right.append(float(share))
            rows, columns = extent(lesson)
            found = lisa.postprocess(out.mask_logits, (rows, columns), (rows, columns)).cpu() > 0
            truth = lesson.truth[:, :rows, :columns].cpu() > 0
            asked = [request for *_, requests_ in views for request in requests_]
            for mask, real, query in zip(found, truth, out.seg_query.tolist(), strict=True):
                value = masks.iou(mask.numpy(), real.numpy())
                ious[asked[query].sort].append(value)
                if (
                    len(tiles) < 16
                    and asked[query].sort == ('explicit', 'implicit')[len(tiles) % 2]
                ):
                    picture = views[int(lesson.batch.image_index[query])][0]
                    full = cv2.resize(mask.numpy().astype(np.uint8), picture.shape[1::-1]) > 0
                    tiles.append(
                        masks.overlay(
                            picture,
                            full[None],
                            caption=[f'{asked[query].turns[0].query} ({value:.2f})'],
                        )
                    )
        if tiles:
            sheet = masks.contact_sheet(tiles, columns=4)
            cv2.imwrite(str(self.run / 'answers.png'), sheet[..., ::-1])
        return {
            'val_explicit': float(np.mean(ious['explicit'])),
            'val_implicit': float(np.mean(ious['implicit'])),
            'val_presence': float(np.mean(right)),
        }

    # ---- keeping

    def save(self) -> None:
        """Write all that `_resume` needs, and the averaged weights in our own layout."""
        state = {
            'step': self.step,
            'lisa': self.lisa.state_dict(),
            'average': self.average.state_dict(),
            'heads': self.heads.state_dict(),
            'optimizer': self.optimizer.state_dict(),
        }
        torch.save(state, self.run / 'last.new')
        (self.run / 'last.new').replace(self.run / 'last.pt')
        checkpoint.save(self.average, self.tokenizer, CLIP_RECIPE, self.run / 'model')

    def _resume(self) -> None:
        state = torch.load(self.run / 'last.pt', weights_only=True, map_location=self.device)
        self.lisa.load_state_dict(state['lisa'])
        self.average.load_state_dict(state['average'])
        self.heads.load_state_dict(state['heads'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.step = state['step']

    def _note(self, row: dict[str, float]) -> None:
        """Append a row to curves.csv."""
        path = self.run / 'curves.csv'
        columns = ['step', 'minutes', *WEIGHTS, 'val_explicit', 'val_implicit', 'val_presence']
        new = not path.exists()
        with path.open('a', newline='') as file:
            writer = csv.DictWriter(file, columns)
            if new:
                writer.writeheader()
            writer.writerow({name: f'{row[name]:.4f}' for name in columns if name in row})
