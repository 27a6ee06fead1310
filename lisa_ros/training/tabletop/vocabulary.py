# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of lisa-tabletop: train its tokenizer, move weights to another vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from lisa_ros.model.tokenizer import SPACE, Tokenizer
from lisa_ros.results import SEG
from lisa_ros.tabletop import answer_text, query_sampling
from lisa_ros.tabletop.scene_graph import SceneGraph

ADDED_TOKENS = ('[SEG]', '<im_start>', '<im_end>')
DIALOGUES = 30000  # that the tokenizer is trained on


def write_tokenizer(
    folder: Path,
    scene_graphs: list[SceneGraph],
    vocabulary_size: int = 1400,
    dialogues: int = DIALOGUES,
) -> Tokenizer:
    """Train a SentencePiece model on sampled dialogues and write LISA's tokenizer folder.

    Every number that answers contain (`answer_text.NUMBER_WORDS`) becomes one token.

    Args:
        folder: to write; it is created.
        scene_graphs: scenes that the dialogues are about.
        vocabulary_size: upper limit, without ADDED_TOKENS.
        dialogues: number of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_sample_sentences(scene_graphs, dialogues)),
        model_prefix=str(folder / 'tokenizer'),
        vocab_size=vocabulary_size,
        model_type='bpe',
        byte_fallback=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        user_defined_symbols=[f'{SPACE}{n}' for n in answer_text.NUMBER_WORDS],
        minloglevel=2,
    )
    (folder / 'tokenizer.vocab').unlink()
    _write_tokenizer_json(folder)
    return Tokenizer.load(folder)


def _sample_sentences(scene_graphs: list[SceneGraph], dialogues: int) -> list[str]:
    """Return sampled turns as text, without [SEG]."""
    rng = np.random.default_rng(0)
    sentences = []
    for i in range(dialogues):
        query = query_sampling.sample_query(rng, scene_graphs[i % len(scene_graphs)])
        for turn in query.turns:
            answer = turn.answer_raw.replace(SEG, '')
            sentences.append(f'USER: {turn.query} ASSISTANT: {answer}')
    return sentences


def _write_tokenizer_json(folder: Path) -> None:
    """Write the JSON files that transformers expects beside tokenizer.model."""
    pieces = sentencepiece.SentencePieceProcessor(str(folder / 'tokenizer.model'))
    size = pieces.get_piece_size()
    flags = {'lstrip': False, 'normalized': False, 'rstrip': False, 'single_word': False}
    special_tokens = {
        'bos_token': {'content': '<s>', **flags},
        'eos_token': {'content': '</s>', **flags},
        'unk_token': {'content': '<unk>', **flags},
        'pad_token': '<unk>',
    }
    contents = {
        'added_tokens.json': {text: size + i for i, text in enumerate(ADDED_TOKENS)},
        'special_tokens_map.json': special_tokens,
        'tokenizer_config.json': {
            'clean_up_tokenization_spaces': False,
            'model_max_length': 512,
        },
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))


def has_number_tokens(tokenizer: Tokenizer) -> bool:
    """Return whether every number of the answers is one token of this vocabulary."""
    return all(len(tokenizer.encode(number)) == 1 for number in answer_text.NUMBER_WORDS)


def remap_vocabulary(
    state: dict[str, torch.Tensor], old: Tokenizer, new: Tokenizer
) -> dict[str, torch.Tensor]:
    """Return weights for another vocabulary.

    The row of a new token is the mean of the rows of its pieces in the old vocabulary.
    """
    ids = {old.id_to_token(i): i for i in range(len(old))}
    mixing = torch.zeros(len(new), len(old))
    for row, token in zip(mixing, map(new.id_to_token, range(len(new))), strict=True):
        pieces = [ids[token]] if token in ids else old.encode(token.replace(SPACE, ' ').strip())
        row.copy_(torch.bincount(torch.tensor(pieces), minlength=len(old)) / len(pieces))
    tables = ('llm.model.embed_tokens.weight', 'llm.lm_head.weight')
    return {**state, **{name: mixing @ state[name].float() for name in tables}}
