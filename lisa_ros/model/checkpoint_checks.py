# SPDX-License-Identifier: Apache-2.0
"""Checks of a checkpoint before its weights are used: tokens, names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from torch import nn

from lisa_ros.errors import CheckpointError
from lisa_ros.model.image_processing import ClipPreprocessing
from lisa_ros.model.json_file import JsonFields
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.model_folder import listed
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.model.weight_files import Shapes


def check_image_marks(config: JsonFields, tokenizer: Tokenizer, folder: Path) -> None:
    """Check that the tokenizer has the tokens around the image that the model was trained with.

    The vocabulary sizes do not show it: the model may have more tokens than the tokenizer,
    because libraries round their number up.

    Raises:
        CheckpointError: the tokenizer lacks <im_start> or <im_end>.
    """
    missing = [mark for mark in ('<im_start>', '<im_end>') if mark not in tokenizer]
    if config.flag('mm_use_im_start_end', False) and missing:
        raise CheckpointError(
            f'{folder}: the model was trained with <im_start> and <im_end>, and the tokenizer '
            f'lacks {" and ".join(missing)}: added_tokens.json is cut off or of another checkpoint'
        )


def check_consistency(
    config: LisaConfig, tokenizer: Tokenizer, preprocessing: ClipPreprocessing, folder: Path
) -> None:
    """Check that config, tokenizer and CLIP preprocessing belong together.

    Raises:
        CheckpointError: two of them disagree.
    """
    size = config.clip.image_size
    if preprocessing.output != (size, size):
        raise CheckpointError(
            f'{folder}: CLIP expects images of {size} x {size} pixels, and its '
            f'preprocessor_config.json makes {preprocessing.output or "a size for each shape"}'
        )
    if config.seg_token_id != tokenizer.seg_token_id:
        raise CheckpointError(
            f'{folder}: the id of [SEG] is {config.seg_token_id} in config.json and '
            f'{tokenizer.seg_token_id} in the tokenizer: files of two checkpoints are mixed'
        )
    if len(tokenizer) > config.llama.vocab_size:
        raise CheckpointError(
            f'{folder}: the tokenizer has {len(tokenizer)} tokens, the model only '
            f'{config.llama.vocab_size}: files of two checkpoints are mixed'
        )
    if config.out_dim != config.sam.prompt_encoder_config.hidden_size:
        raise CheckpointError(
            f'{folder}: [SEG] is projected to {config.out_dim} numbers, SAM expects '
            f'{config.sam.prompt_encoder_config.hidden_size}'
        )


def check_keys(
    model: nn.Module,
    shapes: Shapes,
    source: str | Path,
    optional: Iterable[str] = (),
    to_file_key: Callable[[str], str] = str,
) -> None:
    """Compare the model's weights with those of a checkpoint, by name and shape.

    Args:
        model: the model that needs the weights.
        shapes: shapes of the checkpoint's weights, under the model's names.
        source: where they come from, for the message.
        optional: weights that may be missing, such as tied ones.
        to_file_key: maps the model's names to those in the user's files, for the message.

    Raises:
        CheckpointError: names missing and unexpected weights and other shapes, some of each.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(map(to_file_key, set(expected) - set(shapes) - set(optional)))
    unexpected = sorted(map(to_file_key, set(shapes) - set(expected)))
    reshaped = [
        f'{to_file_key(name)} {shapes[name]} instead of {expected[name]}'
        for name in sorted(set(expected) & set(shapes))
        if shapes[name] != expected[name]
    ]
    groups = {'missing': missing, 'unexpected': unexpected, 'of another shape': reshaped}
    problems = [
        f'{len(names)} {problem}: {listed(names)}' for problem, names in groups.items() if names
    ]
    if problems:
        raise CheckpointError(f'{source}: the weights do not fit. ' + '; '.join(problems))
