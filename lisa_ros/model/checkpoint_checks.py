# SPDX-License-Identifier: Apache-2.0
"""Checks of a checkpoint before its weights are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import nn

from lisa_ros.errors import CheckpointError
from lisa_ros.model.config_inference import Shapes
from lisa_ros.model.image_processing import ClipPreprocessing
from lisa_ros.model.lisa import LisaConfig
from lisa_ros.model.tokenizer import Tokenizer


def _check_sizes(config: LisaConfig, where: Path) -> None:
    """Refuse sizes that make a model whose weights fit, and which fails at the first picture."""
    llama, clip = config.llama, config.clip
    heads, shared = llama.num_attention_heads, llama.num_key_value_heads
    layers, chosen = clip.num_hidden_layers, config.mm_vision_select_layer
    wrong = None
    if shared < 1 or heads % shared:
        wrong = f'num_key_value_heads is {shared}; it must divide num_attention_heads, {heads}'
    elif llama.head_dim < 2 or llama.head_dim % 2:
        wrong = f'head_dim is {llama.head_dim}; it must be even, for positions turn pairs'
    elif type(chosen) is not int or not -layers - 1 <= chosen <= layers:
        wrong = (
            f'mm_vision_select_layer is {chosen!r}; this CLIP has {layers} layers: '
            f'expected {-layers - 1} to {layers}'
        )
    elif llama.max_position_embeddings <= config.image_tokens:
        wrong = (
            f'max_position_embeddings is {llama.max_position_embeddings}; a picture alone takes '
            f'{config.image_tokens} places'
        )
    if wrong:
        raise CheckpointError(f'{where}/config.json: {wrong}')


def _check_marks(plain: Mapping, tokenizer: Tokenizer, folder: Path) -> None:
    """Refuse a tokenizer that lost the picture's marks: prompts without them mean nothing here.

    The model may have more words than the tokenizer (libraries round their number up), so that
    the sizes alone do not tell.
    """
    lost = [mark for mark in ('<im_start>', '<im_end>') if mark not in tokenizer]
    if plain.get('mm_use_im_start_end') and lost:
        raise CheckpointError(
            f'{folder}: the model was trained with <im_start> and <im_end>, and the tokenizer '
            f'lacks {" and ".join(lost)}: added_tokens.json is cut, or of another checkpoint'
        )


def _check_agreement(
    config: LisaConfig, tokenizer: Tokenizer, recipe: ClipPreprocessing, folder: Path
) -> None:
    """Refuse parts that were not made for each other, before they give nonsense."""
    size = config.clip.image_size
    if recipe.output != (size, size):
        raise CheckpointError(
            f'{folder}: CLIP wants pictures of {size} x {size} pixels, but its '
            f'preprocessor_config.json makes {recipe.output or "another size for each shape"}'
        )
    if config.seg_token_id != tokenizer.seg_token_id:
        raise CheckpointError(
            f'{folder}: config.json says that [SEG] is {config.seg_token_id}, the tokenizer that '
            f'it is {tokenizer.seg_token_id}: files of two checkpoints are mixed'
        )
    if len(tokenizer) > config.llama.vocab_size:
        raise CheckpointError(
            f'{folder}: the tokenizer has {len(tokenizer)} tokens, the model only '
            f'{config.llama.vocab_size}: files of two checkpoints are mixed'
        )
    if config.out_dim != config.sam.prompt_encoder_config.hidden_size:
        raise CheckpointError(
            f'{folder}: [SEG] is projected to {config.out_dim} numbers, SAM takes '
            f'{config.sam.prompt_encoder_config.hidden_size}'
        )


def check_keys(
    model: nn.Module,
    shapes: Shapes,
    where: str | Path,
    tied: Iterable[str] = (),
    named: Callable[[str], str] = str,
) -> None:
    """Compare the weights that a model needs with those that there are, under our names.

    Args:
        model: what the weights are for.
        shapes: of the weights that there are.
        where: they are, for the message.
        tied: weights that need not be there.
        named: from our names to those in the user's files, for the message.

    Raises:
        CheckpointError: naming every missing weight, every unexpected one and every other shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(map(named, set(wanted) - set(shapes) - set(tied)))
    unexpected = sorted(map(named, set(shapes) - set(wanted)))
    other = [
        f'{named(name)} {shapes[name]} instead of {wanted[name]}'
        for name in sorted(set(wanted) & set(shapes))
        if shapes[name] != wanted[name]
    ]
    groups = {'missing': missing, 'unexpected': unexpected, 'of another shape': other}
    found = [f'{len(names)} {what}: {", ".join(names)}' for what, names in groups.items() if names]
    if found:
        raise CheckpointError(f'{where}: the weights do not fit. ' + '; '.join(found))
