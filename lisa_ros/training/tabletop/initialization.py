# SPDX-License-Identifier: Apache-2.0
"""The first weights and the tokenizer of lisa-tabletop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig

from lisa_ros.model import image_processing
from lisa_ros.model.lisa import LisaConfig, sam_config
from lisa_ros.model.tokenizer import SPACE, Tokenizer
from lisa_ros.results import SEG
from lisa_ros.tabletop import answer_text, query_sampling
from lisa_ros.tabletop.scene_graph import SceneGraph

ADDED_TOKENS = ('[SEG]', '<im_start>', '<im_end>')
PATCH_SIZE = 16  # of CLIP [px]
MAX_POSITIONS = 1024  # of the language model [tokens]


def write_tokenizer(folder: Path, tables: list[SceneGraph], vocabulary: int = 1400) -> Tokenizer:
    """Train a SentencePiece model on our own grammar and write it as LISA's tokenizer folder."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(30000):
        request = query_sampling.sample_query(rng, tables[i % len(tables)])
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
        user_defined_symbols=[f'{SPACE}{n}' for n in answer_text.NUMBER_WORDS],
        minloglevel=2,
    )
    (folder / 'tokenizer.vocab').unlink()
    pieces = sentencepiece.SentencePieceProcessor(str(folder / 'tokenizer.model'))
    size = pieces.get_piece_size()
    added = {text: size + i for i, text in enumerate(ADDED_TOKENS)}
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


def remap_vocabulary(state: dict[str, torch.Tensor], old: Tokenizer, new: Tokenizer) -> dict:
    """Return weights for another vocabulary; a new word begins as the mean of its old pieces."""
    ids = {old.token(i): i for i in range(len(old))}
    spread = torch.zeros(len(new), len(old))
    for row, token in zip(spread, map(new.token, range(len(new))), strict=True):
        pieces = [ids[token]] if token in ids else old.encode(token.replace(SPACE, ' ').strip())
        row.copy_(torch.bincount(torch.tensor(pieces), minlength=len(old)) / len(pieces))
    tables = ('llm.model.embed_tokens.weight', 'llm.lm_head.weight')
    return {**state, **{name: spread @ state[name].float() for name in tables}}


def resize_position_embedding(state: dict[str, torch.Tensor], patches: int) -> dict:
    """Return weights whose CLIP sees so many patches; their places lie between the old ones."""
    name = 'clip.embeddings.position_embedding.weight'
    picture, places = state[name][:1], state[name][1:]  # the class token has the first row
    before, side = round(len(places) ** 0.5), round(patches**0.5)
    grid = places.float().T.unflatten(1, (before, before))[None]  # (1, W, before, before)
    grid = nn.functional.interpolate(grid, (side, side), mode='bicubic', align_corners=False)
    return {**state, name: torch.cat([picture, grid[0].flatten(1).T.to(places)])}


def default_config(tokenizer: Tokenizer) -> LisaConfig:
    """Return the sizes that `lisa-tabletop` began with: twelve million weights."""
    return LisaConfig(
        clip=CLIPVisionConfig(
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=5,
            num_attention_heads=4,
            image_size=224,
            patch_size=PATCH_SIZE,
            projection_dim=256,
        ),
        llama=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MAX_POSITIONS,
            rms_norm_eps=1e-5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        sam=sam_config(
            image_size=256,
            patch_size=16,
            width=256,
            depth=6,
            heads=4,
            global_layers=(2, 5),
            window=8,
            vision_mlp=704,
            prompt_width=128,
            decoder_mlp=256,
            relative_positions=False,
            iou_width=128,
        ),
        seg_token_id=tokenizer.seg_token_id,
        mm_vision_select_layer=-1,  # no layer is left out: all were trained for this
        out_dim=128,
        template='plain',
        explain='Say why.',
    )


def clip_preprocessing(config: LisaConfig) -> image_processing.ClipPreprocessing:
    """Return how CLIP gets its pictures: whole, squeezed to a square."""
    side = config.clip.image_size
    return image_processing.ClipPreprocessing(size=(side, side), crop=None)
