# SPDX-License-Identifier: Apache-2.0
"""Write a LISA to files, in our own layout or in the released layout of dvlab-research/LISA."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lisa_ros.errors import CheckpointError
from lisa_ros.model import lora
from lisa_ros.model.family import family_of
from lisa_ros.model.image_processing import ClipPreprocessing
from lisa_ros.model.key_mapping import unmap_key
from lisa_ros.model.lisa import LISA
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.point_prompts import PointRule
from lisa_ros.model.tokenizer import Tokenizer

# Frequencies multiply coordinates before a sine: half precision would blur the positions.
_FREQUENCIES = 'sam.prompt_encoder.shared_embedding.positional_embedding'

# ---- our own layout


def save(
    model: LISA,
    tokenizer: Tokenizer,
    preprocessing: ClipPreprocessing,
    folder: str | Path,
    dtype: torch.dtype | None = torch.float16,
    bits: int | None = None,
) -> None:
    """Write the whole model in our own layout, for `checkpoint.load`.

    Args:
        model: with weights that are not quantized.
        tokenizer: the one that it was trained with.
        preprocessing: of its CLIP.
        folder: created if missing; files of the same names are replaced.
        dtype: of the weights in the file; None: keep each weight's dtype.
        bits: round matrices to this number of bits per weight; None: no rounding. The file keeps
            its size, but compresses better in archives and git: 8 bits give 0.6 times the size.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    if model.config.llama.tie_word_embeddings:
        del state['llm.lm_head.weight']  # the same tensor as the embedding; `load` ties them again
    state = {
        key: tensor.to(
            torch.float32 if key == _FREQUENCIES else dtype or tensor.dtype
        ).contiguous()
        for key, tensor in state.items()
    }
    if bits is not None:
        state = {k: t if k == _FREQUENCIES else quantize_rows(t, bits) for k, t in state.items()}
    save_file(state, folder / 'model.safetensors', metadata={'format': 'pt'})
    (folder / lora.FILE).unlink(missing_ok=True)  # of an earlier model in this folder
    _write_json(folder / 'config.json', model.config.to_dict())
    _write_json(folder / 'preprocessor_config.json', preprocessing.to_dict())
    tokenizer.save(folder)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def quantize_rows(tensor: Tensor, bits: int) -> Tensor:
    """Round each row of a matrix to 2**bits levels; the step is a power of two for each row."""
    if tensor.ndim < 2:
        return tensor
    rows = tensor.float().flatten(1)
    largest = rows.abs().amax(1, keepdim=True).clamp(min=1e-30)
    step = torch.exp2(torch.ceil(torch.log2(largest / (2 ** (bits - 1) - 1))))
    return ((rows / step).round() * step).view_as(tensor).to(tensor.dtype)


# ---- the released layout

MAX_SHARD_BYTES = 10 * 10**9  # of weights in a file, as transformers 4.31 writes them
_TOWER = 'openai/clip-vit-large-patch14'  # of the released LISA models
# By template, for a linear projector. Upstream's config.json has no key for the template: users of
# its chat.py choose --conv_type by the name of the base model.
_BASE_MODELS = {
    'llava_llama_2': 'liuhaotian/llava-llama-2-13b-chat-lightning-preview',
    'llava_v1': 'liuhaotian/LLaVA-Lightning-7B-v1-1',
}
_BASE_MODEL_15 = 'liuhaotian/llava-v1.5-7b'  # with a projector of several layers


def has_original_form(config: LisaConfig) -> bool:
    """Return whether the released layout can represent this model.

    Its config.json has no sizes of SAM: they are inferred from the shapes of the weights, heads
    and windows from SAM's relative positions. `lisa-tabletop` has no relative positions.
    """
    vision = config.sam.vision_config
    return bool(vision.use_rel_pos and vision.use_abs_pos)


def save_clip(model: LISA, preprocessing: ClipPreprocessing, folder: str | Path) -> None:
    """Write the model's CLIP as a folder that `vision_tower` can name, here and upstream.

    Args:
        model: with weights that are not quantized.
        preprocessing: of its CLIP.
        folder: created if missing.
    """
    model.clip.save_pretrained(folder)
    _write_json(Path(folder) / 'preprocessor_config.json', preprocessing.to_dict())


def save_original(
    model: LISA,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    vision_tower: str | Path = _TOWER,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the model in the released layout, for the upstream code and for `checkpoint.load`.

    It is the layout of the member of LISA's family that was loaded. The weights have exactly the
    names of a released checkpoint, which does not contain CLIP. SAM and text_hidden_fcs are
    float32, as the original's merge leaves them.

    Args:
        model: with weights that are not quantized.
        tokenizer: the one that it was trained with.
        folder: created if missing; files of the same names are replaced.
        vision_tower: the CLIP that config.json names: a hub id, a folder, or a folder inside
            `folder`. Its weights must be the model's own (`save_clip`). The upstream code expects
            "clip" in the name.
        dtype: of the language model and the projector; None: keep each weight's dtype. The
            released ones are bfloat16.
        max_shard_bytes: maximum size of a weight file; more weights go into several files.

    Raises:
        CheckpointError: the released layout cannot represent the model.
    """
    if not has_original_form(model.config):
        raise CheckpointError(
            'the released layout cannot hold a SAM without relative positions, such as that of '
            'lisa-tabletop: use our own layout'
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob('pytorch_model*'), *folder.glob('model*.safetensors*')):
        old.unlink()  # an earlier model may have more files
    state = original_state_dict(model, dtype)
    _write_shards(state, folder, max_shard_bytes)
    llm_dtype = state['model.embed_tokens.weight'].dtype
    version = {'transformers_version': '4.31.0'}  # the format of these files
    token_ids = {
        'bos_token_id': tokenizer.bos_token_id,
        'eos_token_id': tokenizer.eos_token_id,
        'pad_token_id': tokenizer.pad_token_id,
    }
    config_dict = _original_config(model.config, tokenizer, vision_tower, llm_dtype)
    _write_json(folder / 'config.json', {**config_dict, **token_ids, **version})
    generation_config = {'_from_model_config': True, **token_ids, **version}
    _write_json(folder / 'generation_config.json', generation_config)
    tokenizer.save(folder)


def original_state_dict(model: LISA, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the model's weights under released names, on the CPU, without CLIP.

    Args:
        model: with weights that are not quantized.
        dtype: of the language model and the projector; None: keep each weight's dtype.
    """
    float32_prefixes = ('model.visual_model.', 'model.text_hidden_fcs.')
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith('clip.'):
            continue
        key = unmap_key(name)
        is_float32 = key.startswith(float32_prefixes)
        state[key] = tensor.detach().to(
            'cpu', torch.float32 if is_float32 else dtype or tensor.dtype
        )
    frequencies, _ = model.llm.model.rotary_emb.compute_default_rope_parameters(model.llm.config)
    for layer in range(model.config.llama.num_hidden_layers):
        state[f'model.layers.{layer}.self_attn.rotary_emb.inv_freq'] = frequencies.cpu()
    return state


def _write_shards(state: dict[str, Tensor], folder: Path, max_bytes: int) -> None:
    """Write pytorch_model.bin, or shards of at most `max_bytes` with an index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for name, tensor in state.items():
        if size + tensor.nbytes > max_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        shard_name = f'pytorch_model-{number:05}-of-{len(shards):05}.bin'
        path = shard_name if len(shards) > 1 else 'pytorch_model.bin'
        # torch.save writes the whole storage of a view
        torch.save(
            {
                name: t.contiguous() if t.untyped_storage().nbytes() == t.nbytes else t.clone()
                for name, t in shard.items()
            },
            folder / path,
        )
        weight_map |= dict.fromkeys(shard, path)
    if len(shards) > 1:
        index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
        _write_json(folder / 'pytorch_model.bin.index.json', index)


def _original_config(
    config: LisaConfig, tokenizer: Tokenizer, tower: str | Path, dtype: torch.dtype
) -> dict:
    """Return the content of config.json as the originals write it, and keys of our own."""
    llama = config.llama
    rope = dict(llama.rope_parameters)
    theta, rope_type = rope.pop('rope_theta', 10000.0), rope.pop('rope_type', 'default')
    is_linear = config.mm_projector_type == 'linear'
    base = _BASE_MODELS.get(config.template, _BASE_MODELS['llava_v1'])
    has_head_dim = llama.head_dim != llama.hidden_size // llama.num_attention_heads
    return {
        '_name_or_path': base if is_linear else _BASE_MODEL_15,
        'architectures': [family_of(config, tokenizer).architecture],
        'model_type': 'llava',
        'torch_dtype': str(dtype).removeprefix('torch.'),
        **_own_keys(config, tokenizer),
        'vocab_size': llama.vocab_size,
        'hidden_size': llama.hidden_size,
        'intermediate_size': llama.intermediate_size,
        'num_hidden_layers': llama.num_hidden_layers,
        'num_attention_heads': llama.num_attention_heads,
        'num_key_value_heads': llama.num_key_value_heads,
        **({'head_dim': llama.head_dim} if has_head_dim else {}),
        'hidden_act': llama.hidden_act,
        'initializer_range': llama.initializer_range,
        'max_position_embeddings': llama.max_position_embeddings,
        'rms_norm_eps': llama.rms_norm_eps,
        'rope_theta': theta,
        'rope_scaling': None if rope_type == 'default' else {'type': rope_type, **rope},
        'pretraining_tp': 1,
        'tie_word_embeddings': bool(llama.tie_word_embeddings),
        'use_cache': False,
        'mm_vision_tower': str(tower),
        'vision_tower': str(tower),
        'mm_hidden_size': config.clip.hidden_size,
        'mm_vision_select_layer': config.mm_vision_select_layer,
        'mm_vision_select_feature': 'patch',
        **({} if is_linear else {'mm_projector_type': config.mm_projector_type}),
        'mm_use_im_start_end': bool(tokenizer.image_marks),
        'mm_use_im_patch_token': False,
        'mm_resampler_type': None,
        'use_mm_proj': True,
        'freeze_mm_mlp_adapter': True,
        'tune_mm_mlp_adapter': False,
        'pretrain_mm_mlp_adapter': None,
        'tune_mm_vision_resampler': False,
        'image_aspect_ratio': 'square',
        'image_grid_pinpoints': None,
        'out_dim': config.out_dim,
        'train_mask_decoder': True,
    }


def _own_keys(config: LisaConfig, tokenizer: Tokenizer) -> dict:
    """Return what no key of the originals states and `checkpoint.load` would not guess."""
    family = family_of(config, tokenizer)
    keys: dict[str, object] = {'conv_type': config.template}
    if config.explain != family.explain:
        keys['explain'] = config.explain
    if config.answer_styles not in ({}, family.answer_styles):
        keys['answer_styles'] = dict(config.answer_styles)
    rule = config.point_rule
    if rule not in (None, PointRule.of_layers(config.llama.num_hidden_layers)):
        keys['point_rule'] = dataclasses.asdict(rule)
    return keys
