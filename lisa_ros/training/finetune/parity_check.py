# SPDX-License-Identifier: Apache-2.0
"""Holds the losses and gradients of our trainer against the original's, on its own batches.

A golden set is a folder with, for each size of SAM's input, `golden_<size>.json` and `.npz` (what
the original computed), `ckpt_<size>` (its weights), `clip_<size>` (its CLIP), and `images/`.
Dialogues and pictures go through the code that `finetune` trains with: `lessons.lesson` and
`lessons.losses`, in float32.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lisa_ros.errors import DataError
from lisa_ros.model import checkpoint
from lisa_ros.model.checkpoint import Checkpoint
from lisa_ros.model.key_mapping import map_key
from lisa_ros.model.lisa import LISA
from lisa_ros.perception.prompts import TEMPLATES
from lisa_ros.results import Turn
from lisa_ros.training.finetune import batches

# The original repeats its own losses to 1e-7 relative; where a loss is next to nothing (a
# cross-entropy of 2e-6, a step of float32 in each of its words) only an absolute bound says much.
TOLERANCES = {
    'losses': {'relative': 1e-4, 'absolute': 1e-7},
    'gradient_norms': {'relative': 1e-3, 'absolute': 1e-7},
}


def check(folder: str | Path, device: str = 'cpu') -> dict:
    """Compare all training batches of a golden set; return what came of it as plain data.

    Returns:
        `ok`, of all; `tolerances`; and `cases`: of each its `set` (the size), `case` (its tag),
        `ok`, `tokens` (whether our prompts give the original's ids and labels), and `losses` and
        `gradient_norms` by name, each with `golden`, `ours`, `difference` (relative) and `ok`.

    Raises:
        DataError: the folder holds no golden set, or not all of one.
        CheckpointError: its weights cannot be loaded.
    """
    folder = Path(folder)
    texts = sorted(folder.glob('golden_*.json'))
    if not texts:
        raise DataError(
            f'{folder}: no golden set; expected golden_<size>.json and .npz, ckpt_<size>, '
            'clip_<size> and images/'
        )
    cases = [case for path in texts for case in _check_set(folder, path, device)]
    return {
        'folder': str(folder),
        'ok': bool(cases) and all(case['ok'] for case in cases),
        'tolerances': TOLERANCES,
        'cases': cases,
    }


def _check_set(folder: Path, path: Path, device: str) -> Iterator[dict]:
    size = path.stem.removeprefix('golden_')
    try:
        trains = json.loads(path.read_text(encoding='utf-8'))['train']
        with np.load(path.with_suffix('.npz')) as file:
            arrays = {name: file[name] for name in file.files if name.startswith('train_')}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f'{path}: no golden data that can be read ({error!r})') from error
    tower = folder / f'clip_{size}'
    loaded = checkpoint.load(
        folder / f'ckpt_{size}',
        vision_tower=tower if tower.is_dir() else None,
        device=device,
        precision='fp32',
    )
    for train in trains:
        compared = check_case(folder, train, arrays_of(train, arrays), loaded)
        yield {'set': size, 'case': train['tag'], **compared}


def arrays_of(train: dict, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of one batch, by name without `train_<tag>_`."""
    prefix = f'train_{train["tag"]}_'
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def check_case(
    folder: Path, train: dict, own: Mapping[str, np.ndarray], loaded: Checkpoint
) -> dict:
    """Return one batch's losses and gradient norms beside the original's, see `check`.

    Args:
        folder: of the golden set.
        train: the batch's entry in golden_<size>.json.
        own: its arrays, see `arrays_of`.
        loaded: the weights that the set is of.

    Raises:
        DataError: something of the batch is not there.
    """
    try:
        wanted, norms = train['losses'], train['grad_norm']
        given = golden_lesson(folder / 'images', train, own, loaded)
        tokens = all(
            np.array_equal(ours.numpy(), own[name])
            for name, ours in (
                ('input_ids', given.batch.input_ids),
                ('labels', given.batch.labels),
            )
        )
    except KeyError as error:
        raise DataError(f'{folder}: {train.get("tag")} lacks {error.args[0]}') from error
    model = loaded.model
    with vision_frozen(model):
        found = weighted(batches.losses(model, given.to(model.llm.lm_head.weight.device)))
        found['loss'].backward()
        ours = {name: gradient_norm(model, name) for name in norms}
    values = {name: found[name].item() for name in wanted}
    losses = _compared(wanted, values, **TOLERANCES['losses'])
    gradients = _compared(norms, ours, **TOLERANCES['gradient_norms'])
    good = tokens and all(row['ok'] for row in (*losses.values(), *gradients.values()))
    return {'ok': good, 'tokens': tokens, 'losses': losses, 'gradient_norms': gradients}


def _compared(golden: dict, ours: dict, relative: float, absolute: float) -> dict:
    """Return a row for each figure: both, how far they are apart, and whether that is near."""
    return {
        name: {
            'golden': wanted,
            'ours': ours[name],
            'difference': abs(ours[name] - wanted) / abs(wanted or 1.0),
            'ok': math.isclose(ours[name], wanted, rel_tol=relative, abs_tol=absolute),
        }
        for name, wanted in golden.items()
    }


# ---- what is compared


def golden_lesson(
    images: Path, train: dict, own: Mapping[str, np.ndarray], loaded: Checkpoint
) -> batches.FinetuneBatch:
    """Return a batch of the original's as our trainer makes it of pictures and dialogues.

    Args:
        images: the folder of its pictures.
        train: its entry in golden_<size>.json.
        own: its arrays, see `arrays_of`.
        loaded: the model.

    Raises:
        DataError: a picture is not there, or has not as many masks as its answers have [SEG].
        KeyError: a field or an array is not there.
    """
    config, tokenizer = loaded.model.config, loaded.tokenizer
    dialogues = [_turns(text, train['template']) for text in train['conversations']]
    samples = []
    for number, (start, end) in enumerate(itertools.pairwise(own['offset'].tolist())):
        shape = own[f'gt_masks_{number}_shape']
        bits = np.unpackbits(own[f'gt_masks_{number}_packbits'])[: shape.prod()]
        name = train['images'][number]
        picture = _picture(images, name)
        samples.append(
            batches.Sample(picture, tuple(dialogues[start:end]), bits.reshape(shape), name)
        )
    longest = tokenizer.model_max_length
    return batches.make_batch(
        dataclasses.replace(config, template=train['template']),
        tokenizer,
        loaded.clip_recipe,
        samples,
        typed_specials=True,  # as the original has them
        max_length=longest - config.image_tokens + 1 if longest else None,
    )


def _turns(conversation: str, template: str) -> tuple[Turn, ...]:
    """Return the turns of a conversation as the original writes it out."""
    before, after = TEMPLATES[template].question.split('{}')
    turns = []
    for part in conversation.partition('<im_end>\n')[2].removesuffix('</s>').split('</s>'):
        question, _, answer = part.partition(after)
        turns.append(Turn(question.removeprefix('<s>').removeprefix(before), answer.strip()))
    return tuple(turns)


def _picture(folder: Path, name: str) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB, whatever kind of file it is."""
    path = next(iter(sorted(folder.glob(f'{name}.*'))), None)
    if path is None:
        raise DataError(f'{folder}: no picture {name} here')
    with Image.open(path) as picture:
        return np.asarray(picture.convert('RGB'))


def weighted(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our losses under the original's names, weighted and summed up as there."""
    ce, bce, dice = (batches.WEIGHTS[name] * parts[name] for name in ('ce', 'bce', 'dice'))
    return {
        'ce_loss': ce,
        'mask_bce_loss': bce,
        'mask_dice_loss': dice,
        'mask_loss': bce + dice,
        'loss': ce + bce + dice,
    }


@contextlib.contextmanager
def vision_frozen(model: LISA) -> Iterator[None]:
    """Let CLIP and SAM's encoder not learn, as the original by no_grad; leave no gradients."""
    frozen = [*model.clip.parameters(), *model.sam.vision_encoder.parameters()]
    learnt = [parameter.requires_grad for parameter in frozen]
    model.zero_grad()
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        model.zero_grad()
        for parameter, learns in zip(frozen, learnt, strict=True):
            parameter.requires_grad_(learns)


def gradient_norm(model: LISA, name: str) -> float:
    """Return the L2 norm of the gradients of one weight, or of all below a released name.

    Raises:
        DataError: the model has nothing of that name.
    """
    ours = map_key(name if name.endswith(('weight', 'bias')) else f'{name}.')
    found = [p.grad for n, p in model.named_parameters() if n.startswith(ours)]
    if not found:
        raise DataError(f'the golden set has a gradient of {name}, and the model no such weight')
    norms = [gradient.norm() for gradient in found if gradient is not None]
    return torch.stack(norms).norm().item() if norms else 0.0
