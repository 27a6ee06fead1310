# SPDX-License-Identifier: Apache-2.0
"""Compares losses and gradients of our fine-tuning with those of the original LISA code.

The batches and the expected results are in a golden set, a folder with `images/` and, for each
size of SAM's input:

    golden_<size>.json, .npz   batches of the original, with its losses and gradient norms
    ckpt_<size>, clip_<size>   weights of its LISA and of its CLIP

The comparison runs the code of `finetune`, `batches.make_batch` and `batch_losses.compute_losses`,
in float32.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lisa_ros.errors import DataError
from lisa_ros.files.text import read_json
from lisa_ros.images.image_file import read_rgb
from lisa_ros.model import checkpoint
from lisa_ros.model.checkpoint import Checkpoint
from lisa_ros.model.key_mapping import unmap_key
from lisa_ros.model.lisa import LISA
from lisa_ros.perception.prompts import TEMPLATES
from lisa_ros.results import Turn
from lisa_ros.training.finetune.batch_losses import LOSS_WEIGHTS, compute_losses
from lisa_ros.training.finetune.batches import FinetuneBatch, Sample, make_batch

# Two runs of the original differ by up to 1e-7 relative. For a loss near 0 only the absolute bound
# is meaningful: a cross-entropy of 2e-6 is one float32 step per token.
TOLERANCES = {
    'losses': {'relative': 1e-4, 'absolute': 1e-7},
    'gradient_norms': {'relative': 1e-3, 'absolute': 1e-7},
}


def compare_golden_set(folder: str | Path, device: str = 'cpu') -> dict[str, Any]:
    """Compare all training batches of a golden set with the original's results.

    Args:
        folder: the golden set.
        device: cpu or cuda.

    Returns:
        A report for JSON with the keys `folder`, `ok` (whether all cases agree), `tolerances` and
        `cases`. A case has `set` (the size), `case` (its tag), `ok`, `tokens` (whether our token
        ids and labels equal the original's), `losses` and `gradient_norms`. The last two have, by
        name, `golden`, `ours`, `difference` (relative) and `ok`.

    Raises:
        DataError: the folder is not a complete golden set.
        CheckpointError: its weights cannot be loaded.
    """
    folder = Path(folder)
    paths = sorted(folder.glob('golden_*.json'))
    if not paths:
        raise DataError(
            f'{folder}: no golden set; expected golden_<size>.json and .npz, ckpt_<size>, '
            'clip_<size> and images/'
        )
    cases = [case for path in paths for case in _compare_set(folder, path, device)]
    return {
        'folder': str(folder),
        'ok': bool(cases) and all(case['ok'] for case in cases),
        'tolerances': TOLERANCES,
        'cases': cases,
    }


def format_report(report: dict[str, Any]) -> str:
    """Return the report of `compare_golden_set` as a table of losses and gradient norms."""
    lines = [f'{"":32}{"original":>14}{"ours":>14}{"difference":>12}']
    for case in report['cases']:
        tokens = 'tokens equal' if case['tokens'] else 'TOKENS DIFFER'
        lines.append(f'SAM input {case["set"]} px, batch {case["case"]}: {tokens}')
        for name, row in {**case['losses'], **case['gradient_norms']}.items():
            short = name if len(name) < 30 else f'...{name[-27:]}'
            values = f'{row["golden"]:14.6g}{row["ours"]:14.6g}{row["difference"]:12.1e}'
            lines.append(f'  {short:30}{values}{"" if row["ok"] else "  DIFFERS"}')
    result = (
        'all losses and gradients agree with the original'
        if report['ok']
        else 'losses or gradients differ from the original'
    )
    return '\n'.join([*lines, result])


def _compare_set(folder: Path, path: Path, device: str) -> Iterator[dict[str, Any]]:
    """Yield the comparison of each batch in one golden_<size>.json."""
    size = path.stem.removeprefix('golden_')
    try:
        entries = read_json(path)['train']
        with np.load(path.with_suffix('.npz')) as file:
            arrays = {name: file[name] for name in file.files if name.startswith('train_')}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path}: the golden data cannot be read ({error!r})') from error
    tower = folder / f'clip_{size}'
    loaded = checkpoint.load(
        folder / f'ckpt_{size}',
        vision_tower=tower if tower.is_dir() else None,
        device=device,
        precision='fp32',
    )
    for entry in entries:
        comparison = compare_case(folder, entry, batch_arrays(entry, arrays), loaded)
        yield {'set': size, 'case': entry['tag'], **comparison}


def batch_arrays(entry: dict, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of one batch; their names lose the prefix `train_<tag>_`."""
    prefix = f'train_{entry["tag"]}_'
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def compare_case(
    folder: Path, entry: dict, arrays: Mapping[str, np.ndarray], loaded: Checkpoint
) -> dict[str, Any]:
    """Compare the losses and gradient norms of one batch with the original's.

    Args:
        folder: the golden set.
        entry: of the batch in golden_<size>.json.
        arrays: of the batch, see `batch_arrays`.
        loaded: the golden set's weights.

    Raises:
        DataError: a part of the batch is missing.
    """
    try:
        golden_losses, golden_norms = entry['losses'], entry['grad_norm']
        batch = golden_batch(folder / 'images', entry, arrays, loaded)
        tokens_equal = all(
            np.array_equal(ours.numpy(), arrays[name])
            for name, ours in (
                ('input_ids', batch.inputs.input_ids),
                ('labels', batch.inputs.labels),
            )
        )
    except KeyError as error:
        raise DataError(f'{folder}: batch {entry.get("tag")} lacks {error.args[0]}') from error
    model = loaded.model
    with frozen_vision(model):
        losses = original_losses(compute_losses(model, batch.to(model.llm.lm_head.weight.device)))
        losses['loss'].backward()
        our_norms = {name: gradient_norm(model, name) for name in golden_norms}
    our_losses = {name: losses[name].item() for name in golden_losses}
    loss_rows = _compare_values(golden_losses, our_losses, **TOLERANCES['losses'])
    norm_rows = _compare_values(golden_norms, our_norms, **TOLERANCES['gradient_norms'])
    agrees = tokens_equal and all(row['ok'] for row in (*loss_rows.values(), *norm_rows.values()))
    return {'ok': agrees, 'tokens': tokens_equal, 'losses': loss_rows, 'gradient_norms': norm_rows}


def _compare_values(
    golden: dict[str, float], ours: dict[str, float], relative: float, absolute: float
) -> dict[str, dict[str, float | bool]]:
    """Return both values, their relative difference and whether it is within tolerance."""
    return {
        name: {
            'golden': value,
            'ours': ours[name],
            'difference': abs(ours[name] - value) / abs(value or 1.0),
            'ok': math.isclose(ours[name], value, rel_tol=relative, abs_tol=absolute),
        }
        for name, value in golden.items()
    }


# ---- the batch


def golden_batch(
    images: Path, entry: dict, arrays: Mapping[str, np.ndarray], loaded: Checkpoint
) -> FinetuneBatch:
    """Return a batch of the golden set, made by our code from images and dialogues.

    Args:
        images: folder of the images.
        entry: of the batch in golden_<size>.json.
        arrays: of the batch, see `batch_arrays`.
        loaded: the model.

    Raises:
        DataError: an image is missing, or the numbers of its masks and of [SEG] in its answers
            differ.
        KeyError: a field or an array is missing.
    """
    config, tokenizer = loaded.model.config, loaded.tokenizer
    template = entry.get('template', config.template)
    dialogues = [_turns(text, template) for text in entry['conversations']]
    samples = []
    for index, (start, end) in enumerate(itertools.pairwise(arrays['offset'].tolist())):
        shape = arrays[f'gt_masks_{index}_shape']
        bits = np.unpackbits(arrays[f'gt_masks_{index}_packbits'])[: shape.prod()]
        name = entry['images'][index]
        image = _read_image(images, name)
        samples.append(Sample(image, tuple(dialogues[start:end]), bits.reshape(shape), name))
    longest = tokenizer.model_max_length
    return make_batch(
        dataclasses.replace(config, template=template),
        tokenizer,
        loaded.clip_preprocessing,
        samples,
        typed_specials=True,  # as in the original
        max_length=longest - config.image_tokens + 1 if longest else None,
    )


def _turns(conversation: str, template: str) -> tuple[Turn, ...]:
    """Return the turns of a conversation, parsed from the original's prompt text."""
    before, after = TEMPLATES[template].question.split('{}')
    turns = []
    after_image = conversation.partition('<image>')[2].removeprefix('<im_end>').removeprefix('\n')
    for part in after_image.removesuffix('</s>').split('</s>'):
        question, _, answer = part.partition(after)
        turns.append(Turn(question.removeprefix('<s>').removeprefix(before), answer.strip()))
    return tuple(turns)


def _read_image(folder: Path, name: str) -> np.ndarray:
    """Return the image NAME.*, of any file type, (H, W, 3) uint8 RGB."""
    path = next(iter(sorted(folder.glob(f'{name}.*'))), None)
    if path is None:
        raise DataError(f'{folder}: the image {name} is missing')
    return read_rgb(path)


# ---- what is compared


def original_losses(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our losses under the original's names, with its weights and sums."""
    ce, bce, dice = (LOSS_WEIGHTS[name] * losses[name] for name in ('ce', 'bce', 'dice'))
    return {
        'ce_loss': ce,
        'mask_bce_loss': bce,
        'mask_dice_loss': dice,
        'mask_loss': bce + dice,
        'loss': ce + bce + dice,
    }


@contextlib.contextmanager
def frozen_vision(model: LISA) -> Iterator[None]:
    """Freeze CLIP and SAM's encoder in the body; clear all gradients before and after it.

    The original does not train them either: it runs them under no_grad.
    """
    vision = [*model.clip.parameters(), *model.sam.vision_encoder.parameters()]
    previous = [parameter.requires_grad for parameter in vision]
    model.zero_grad()
    try:
        for parameter in vision:
            parameter.requires_grad_(False)
        yield
    finally:
        model.zero_grad()
        for parameter, requires_grad in zip(vision, previous, strict=True):
            parameter.requires_grad_(requires_grad)


def gradient_norm(model: LISA, name: str) -> float:
    """Return the L2 norm of the gradients of a weight, or of all weights of a module.

    Args:
        model: after the backward pass.
        name: of a weight or module in the released checkpoints.

    Raises:
        DataError: the model has no such weight or module.
    """
    prefix = name if name.endswith(('weight', 'bias')) else f'{name}.'
    gradients = [p.grad for n, p in model.named_parameters() if unmap_key(n).startswith(prefix)]
    if not gradients:
        raise DataError(
            f'the golden set has a gradient of {name}, but the model has no weight {prefix}'
        )
    norms = [gradient.norm() for gradient in gradients if gradient is not None]
    return torch.stack(norms).norm().item() if norms else 0.0
