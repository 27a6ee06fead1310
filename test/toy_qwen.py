# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL and Qwen3-VL at toy size: random weights and a small tokenizer."""

from __future__ import annotations

from itertools import pairwise

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from lisa_ros.vlm.profiles import PROFILES

SPECIAL = [
    *('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|object_ref_start|>'),
    *('<|object_ref_end|>', '<|box_start|>', '<|box_end|>', '<|quad_start|>', '<|quad_end|>'),
    *('<|vision_start|>', '<|vision_end|>', '<|vision_pad|>', '<|image_pad|>', '<|video_pad|>'),
]
_WORDS = Regex(  # Qwen2's
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"""
    r"""\s*[\r\n]+|\s+(?!\S)|\s+"""
)


def toy_tokenizer():
    """Return a byte-level BPE tokenizer with Qwen's special tokens, trained on the prompts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, 'isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([profile.prompt for profile in PROFILES.values()] * 2, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken('<tool_call>', special=False)])
    return tokenizer


def toy_config(model_type, tokenizer, max_positions=2048):
    """Return the config of a model with two layers of each kind."""
    ids = {
        'image_token_id': tokenizer.token_to_id('<|image_pad|>'),
        'video_token_id': tokenizer.token_to_id('<|video_pad|>'),
        'vision_start_token_id': tokenizer.token_to_id('<|vision_start|>'),
        'vision_end_token_id': tokenizer.token_to_id('<|vision_end|>'),
    }
    text = {
        'vocab_size': tokenizer.get_vocab_size() + 3,  # rounded up, as the released ones
        'hidden_size': 32,
        'intermediate_size': 48,
        'num_hidden_layers': 2,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'max_position_embeddings': max_positions,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6, 'mrope_section': [1, 1, 2]},
        'bos_token_id': None,
        'eos_token_id': None,
    }
    vision = {
        'depth': 2,
        'hidden_size': 32,
        'intermediate_size': 48,
        'num_heads': 2,
        'out_hidden_size': 32,
        'temporal_patch_size': 2,
        'spatial_merge_size': 2,
    }
    if model_type == 'qwen2_5_vl':
        text['max_window_layers'] = 2
        vision |= {'patch_size': 14, 'window_size': 56, 'fullatt_block_indexes': [1]}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    text['head_dim'] = 8
    text['rope_parameters']['mrope_interleaved'] = True
    vision |= {
        'patch_size': 16,
        'num_position_embeddings': 64,
        'deepstack_visual_indexes': [0, 1],
    }
    return Qwen3VLConfig(text_config=text, vision_config=vision, **ids)


def toy_model(model_type, tokenizer, **options):
    """Return a model whose answers depend on image and words; its logits are far apart."""
    classes = {
        'qwen2_5_vl': Qwen2_5_VLForConditionalGeneration,
        'qwen3_vl': Qwen3VLForConditionalGeneration,
    }
    torch.manual_seed(0)
    model = classes[model_type](toy_config(model_type, tokenizer, **options))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 2 / weight[0].numel() ** 0.5)
            elif 'bias' in name:
                weight.normal_(0, 0.1)
    model.generation_config.eos_token_id = None
    return model.eval()


def save_toy(folder, model_type, **options):
    """Write a model and its tokenizer to a folder, in the layout of the released ones."""
    tokenizer = toy_tokenizer()
    toy_model(model_type, tokenizer, **options).save_pretrained(folder)
    tokenizer.save(str(folder / 'tokenizer.json'))
    return folder


def save_scripted(folder, *pieces, model_type='qwen2_5_vl'):
    """Write a model that answers each query with the same text, one token for each piece.

    It is a real model: each token of the answer is predicted from the one before it alone.
    The pieces must differ.
    """
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    model = toy_model(model_type, tokenizer)
    newline = tokenizer.encode('\n').ids[0]  # the last token of the prompt
    chain = [newline, *map(tokenizer.token_to_id, pieces), tokenizer.token_to_id('<|im_end|>')]
    assert len(set(chain)) == len(chain)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embeddings = model.get_input_embeddings().weight
        model.lm_head.weight.zero_()
        for token, following in pairwise(chain):
            row = embeddings[token]
            model.lm_head.weight[following] = 2 * row / row.norm()  # a probability of 0.99
    model.save_pretrained(folder)
    tokenizer.save(str(folder / 'tokenizer.json'))
    return folder
