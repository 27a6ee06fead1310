# SPDX-License-Identifier: Apache-2.0
"""A LISA to files: in our own layout, or in the released one, which upstream reads, too."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lisa_ros.errors import CheckpointError
from lisa_ros.model import lora
from lisa_ros.model.image_processing import ClipPreprocessing
from lisa_ros.model.key_mapping import unmap_key
from lisa_ros.model.lisa import LISA, LisaConfig
from lisa_ros.model.tokenizer import Tokenizer

# ---- our own layout


def save(
    model: LISA,
    tokenizer: Tokenizer,
    recipe: ClipPreprocessing,
    folder: str | Path,
    dtype: torch.dtype | None = torch.float16,
    bits: int | None = None,
) -> None:
    """Write the model in our own layout, whole, for `load`.

    Args:
        model: with weights that are not quantised.
        tokenizer: the one that it was trained with.
        recipe: CLIP's.
        folder: made if it is not there; files of the same names are replaced.
        dtype: of the weights in the file; None: of each as it is.
        bits: matrices are rounded to so many bits a weight; the file's size stays, but archives
            and git pack it the better: at 8 bits to six tenths of what they do otherwise.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    if model.config.llama.tie_word_embeddings:
        del state['llm.lm_head.weight']  # the same storage as the embedding; `load` ties again
    # frequencies multiply coordinates before a sine: half precision would blur the positions
    kept = 'sam.prompt_encoder.shared_embedding.positional_embedding'
    state = {
        key: tensor.to(torch.float32 if key == kept else dtype or tensor.dtype).contiguous()
        for key, tensor in state.items()
    }
    if bits is not None:
        state = {k: t if k == kept else quantize_rows(t, bits) for k, t in state.items()}
    save_file(state, folder / 'model.safetensors', metadata={'format': 'pt'})
    (folder / lora.FILE).unlink(missing_ok=True)  # of a model that was there before
    texts = {'config.json': model.config.to_dict(), 'preprocessor_config.json': recipe.to_dict()}
    for name, plain in texts.items():
        (folder / name).write_text(json.dumps(plain, indent=2) + '\n', encoding='utf-8')
    tokenizer.save(folder)


def quantize_rows(tensor: Tensor, bits: int) -> Tensor:
    """Return a matrix on a grid of its own for each row, whose step is a power of two."""
    if tensor.ndim < 2:
        return tensor
    rows = tensor.float().flatten(1)
    most = rows.abs().amax(1, keepdim=True).clamp(min=1e-30)
    step = torch.exp2(torch.ceil(torch.log2(most / (2 ** (bits - 1) - 1))))
    return ((rows / step).round() * step).view_as(tensor).to(tensor.dtype)


# ---- the released layout

_SHARD = 10 * 10**9  # bytes of weights in a file at most, as transformers 4.31 writes them
_TOWER = 'openai/clip-vit-large-patch14'  # of all released LISA
_BASES = {  # by template: what the original trained from, which tells chat.py's users the template
    'llava_llama_2': 'liuhaotian/llava-llama-2-13b-chat-lightning-preview',
    'llava_v1': 'liuhaotian/LLaVA-Lightning-7B-v1-1',
}


def has_original_form(config: LisaConfig) -> bool:
    """Return whether the released layout can say what this model is.

    Its SAM tells its sizes by relative positions, which `lisa-tabletop` does without.
    """
    vision = config.sam.vision_config
    return bool(vision.use_rel_pos and vision.use_abs_pos)


def save_clip(model: LISA, recipe: ClipPreprocessing, folder: str | Path) -> None:
    """Write the model's CLIP as a folder that `vision_tower` may name, here and upstream.

    Args:
        model: with weights that are not quantised.
        recipe: how its pictures are made ready.
        folder: made if it is not there.
    """
    model.clip.save_pretrained(folder)
    text = json.dumps(recipe.to_dict(), indent=2) + '\n'
    (Path(folder) / 'preprocessor_config.json').write_text(text, encoding='utf-8')


def save_original(
    model: LISA,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    vision_tower: str | Path = _TOWER,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the model in the released layout, for the upstream code and for `load`.

    The names of the weights are exactly those of a released checkpoint, CLIP left out as there;
    SAM and text_hidden_fcs are float32, as the original's merge leaves them.

    Args:
        model: with weights that are not quantised.
        tokenizer: the one that it was trained with.
        folder: made if it is not there; files of the same names are replaced.
        vision_tower: what config.json names for CLIP: a hub id, a folder, or one that lies in
            `folder`. Its weights must be the model's own, see `save_clip`; the upstream code
            wants "clip" in the name.
        dtype: of the language model and the projector; None: of each weight as it is. The
            released ones have bfloat16.

    Raises:
        CheckpointError: the model has not `has_original_form`.
    """
    if not has_original_form(model.config):
        raise CheckpointError(
            'the released layout cannot hold a SAM without relative positions, as that of '
            'lisa-tabletop: use our own layout'
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob('pytorch_model*'), *folder.glob('model*.safetensors*')):
        old.unlink()  # of a model with more files
    full = ('model.visual_model.', 'model.text_hidden_fcs.')
    state = {}
    for name, tensor in model.state_dict().items():
        theirs = unmap_key(name)
        if not name.startswith('clip.'):
            wanted = torch.float32 if theirs.startswith(full) else dtype or tensor.dtype
            state[theirs] = tensor.detach().to('cpu', wanted)
    config = model.config
    frequencies, _ = model.llm.model.rotary_emb.compute_default_rope_parameters(model.llm.config)
    for layer in range(config.llama.num_hidden_layers):
        state[f'model.layers.{layer}.self_attn.rotary_emb.inv_freq'] = frequencies.cpu()
    _write_shards(state, folder)
    kept = state['model.embed_tokens.weight'].dtype
    special = {
        'bos_token_id': tokenizer.bos_token_id,
        'eos_token_id': tokenizer.eos_token_id,
        'pad_token_id': tokenizer.pad_token_id,
    }
    texts = {
        'config.json': {**_original_config(config, vision_tower, kept), **special},
        'generation_config.json': {'_from_model_config': True, **special},
    }
    for name, plain in texts.items():
        plain['transformers_version'] = '4.31.0'  # whose form it is
        (folder / name).write_text(json.dumps(plain, indent=2) + '\n', encoding='utf-8')
    tokenizer.save(folder)


def _write_shards(state: dict[str, Tensor], folder: Path) -> None:
    """Write pytorch_model.bin, or so many parts of it with an index that each has _SHARD bytes."""
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for name, tensor in state.items():
        if size + tensor.nbytes > _SHARD and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    index = {}
    for number, shard in enumerate(shards, 1):
        part = f'pytorch_model-{number:05}-of-{len(shards):05}.bin'
        path = part if len(shards) > 1 else 'pytorch_model.bin'
        # a view would take all of its storage along
        torch.save(
            {
                name: t.contiguous() if t.untyped_storage().nbytes() == t.nbytes else t.clone()
                for name, t in shard.items()
            },
            folder / path,
        )
        index |= dict.fromkeys(shard, path)
    if len(shards) > 1:
        plain = {'metadata': {'total_size': total}, 'weight_map': index}
        text = json.dumps(plain, indent=2) + '\n'
        (folder / 'pytorch_model.bin.index.json').write_text(text, encoding='utf-8')


def _original_config(config: LisaConfig, tower: str | Path, dtype: torch.dtype) -> dict:
    """Return config.json as the original writes it; `conv_type` is our own note."""
    llama = config.llama
    rope = dict(llama.rope_parameters)
    theta, kind = rope.pop('rope_theta', 10000.0), rope.pop('rope_type', 'default')
    own_head = llama.head_dim != llama.hidden_size // llama.num_attention_heads
    return {
        '_name_or_path': _BASES.get(config.template, _BASES['llava_v1']),
        'architectures': ['LISAForCausalLM'],
        'model_type': 'llava',
        'torch_dtype': str(dtype).removeprefix('torch.'),
        'conv_type': config.template,
        'vocab_size': llama.vocab_size,
        'hidden_size': llama.hidden_size,
        'intermediate_size': llama.intermediate_size,
        'num_hidden_layers': llama.num_hidden_layers,
        'num_attention_heads': llama.num_attention_heads,
        'num_key_value_heads': llama.num_key_value_heads,
        **({'head_dim': llama.head_dim} if own_head else {}),
        'hidden_act': llama.hidden_act,
        'initializer_range': llama.initializer_range,
        'max_position_embeddings': llama.max_position_embeddings,
        'rms_norm_eps': llama.rms_norm_eps,
        'rope_theta': theta,
        'rope_scaling': None if kind == 'default' else {'type': kind, **rope},
        'pretraining_tp': 1,
        'tie_word_embeddings': bool(llama.tie_word_embeddings),
        'use_cache': False,
        'mm_vision_tower': str(tower),
        'vision_tower': str(tower),
        'mm_hidden_size': config.clip.hidden_size,
        'mm_vision_select_layer': config.mm_vision_select_layer,
        'mm_vision_select_feature': 'patch',
        'mm_use_im_start_end': True,
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
