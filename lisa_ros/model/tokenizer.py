# SPDX-License-Identifier: Apache-2.0
"""Words to ids and back, as the tokenizer that LISA was trained with did it.

LISA's weights know the ids of transformers 4.31's slow LlamaTokenizer (legacy): text between
special tokens goes through SentencePiece run by run, each run with a leading space of its own, and
whitespace beside *added* tokens ([SEG], <im_start>, <im_end>) is dropped. Later transformers do
both otherwise, so this file states the rules itself (test/test_tokenizer.py has the original's
answers).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from lisa_ros.errors import CheckpointError
from lisa_ros.results import SEG

SPACE = '\N{LOWER ONE EIGHTH BLOCK}'  # how SentencePiece writes it
_ROLES = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>', 'pad_token': None}
_FILES = ('added_tokens.json', 'special_tokens_map.json', 'tokenizer_config.json')


@dataclass(frozen=True)
class Special:
    """A token written in the prompt by us: an id of its own wherever it stands."""

    text: str


class Tokenizer:
    """SentencePiece with the tokens that were added to it. Immutable: share it between threads."""

    def __init__(
        self,
        pieces: SentencePieceProcessor,
        added: dict[str, int],
        special: dict[str, tuple[bool, bool]],
        roles: dict[str, str],
        *,
        model_max_length: int | None = None,
        clean_up_spaces: bool = False,
    ):
        """Make a tokenizer of parts; `load` does it from a folder.

        Args:
            pieces: the SentencePiece model.
            added: the id of each token that the SentencePiece model does not have.
            special: tokens that `skip_special_tokens` drops, each with (strip the text left of
                it, strip the text right of it).
            roles: which token is 'bos_token', 'eos_token', 'unk_token' and 'pad_token'.
            model_max_length: longest training conversation [tokens], if the folder says so.
            clean_up_spaces: decode without spaces before punctuation, as some folders ask.
        """
        self._pieces = pieces
        self._added = dict(added)
        self._special = dict(special)
        self._roles = dict(roles)
        self._texts = {index: text for text, index in added.items()}
        self._clean_up_spaces = clean_up_spaces
        self.model_max_length = model_max_length
        self.bos_token, self.eos_token = roles['bos_token'], roles['eos_token']
        self.unk_token_id = self._id(roles['unk_token'])
        self.bos_token_id, self.eos_token_id = self._id(self.bos_token), self._id(self.eos_token)
        self.pad_token_id = self._id(roles.get('pad_token') or roles['unk_token'])
        names = sorted({*self._added, *self._special}, key=len, reverse=True)  # longest first
        self._splitter = re.compile('(' + '|'.join(map(re.escape, names)) + ')')

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a checkpoint's tokenizer.model and the json files beside it.

        Added tokens come from added_tokens.json, or from tokenizer_config.json's
        added_tokens_decoder in folders of newer libraries.

        Raises:
            CheckpointError: a file is missing or cannot be read.
        """
        folder = Path(folder)
        try:
            pieces = SentencePieceProcessor(model_proto=(folder / 'tokenizer.model').read_bytes())
            data = {name: _read_json(folder / name) for name in _FILES}
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f'{folder}: no tokenizer of LISA could be read here ({error}); expected '
                f'tokenizer.model (SentencePiece) with {", ".join(_FILES)} beside it'
            ) from error
        config = data['tokenizer_config.json']
        listed = {
            entry['content']: int(index)
            for index, entry in config.get('added_tokens_decoder', {}).items()
        }
        added = {**listed, **data['added_tokens.json']}
        # 4.31 takes the roles from tokenizer_config.json, where a bare string strips nothing, and
        # lets special_tokens_map.json override them, where a bare string strips both sides.
        entries = {
            role: _token(config.get(role) or default, strips=False)
            for role, default in _ROLES.items()
            if config.get(role) or default
        }
        bare = set()
        for role, entry in data['special_tokens_map.json'].items():
            for place, one in enumerate(entry if isinstance(entry, list) else [entry]):
                key = role if role in _ROLES else f'{role} {place}'
                entries[key] = _token(one, strips=True)
                bare |= {key} if isinstance(one, str) else set()
        # the same text in two roles (<unk> also pads): the one with flags decides
        special = {text: strips for key, (text, strips) in entries.items() if key in bare}
        special |= {text: strips for key, (text, strips) in entries.items() if key not in bare}
        roles = {role: entries[role][0] for role in _ROLES if role in entries}
        longest = config.get('model_max_length')
        return cls(
            pieces,
            {text: index for text, index in added.items() if index >= pieces.get_piece_size()},
            special,
            roles,
            # "no limit" is written as 10^30
            model_max_length=longest if longest and longest < 1e9 else None,
            clean_up_spaces=config.get('clean_up_tokenization_spaces', True),
        )

    def save(self, folder: str | Path) -> None:
        """Write the files that `load` reads, in the form of transformers 4.31."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'tokenizer.model').write_bytes(self._pieces.serialized_model_proto())
        flags = {
            text: {'content': text, 'lstrip': left, 'rstrip': right}
            for text, (left, right) in self._special.items()
        }
        roles = {role: flags[text] for role, text in self._roles.items()}
        config = {
            'tokenizer_class': 'LlamaTokenizer',
            'legacy': True,
            'clean_up_tokenization_spaces': self._clean_up_spaces,
            'model_max_length': self.model_max_length,
        }
        others = [flag for text, flag in flags.items() if text not in self._roles.values()]
        contents = {
            'added_tokens.json': self._added,
            'special_tokens_map.json': {
                **roles,
                **({'additional_special_tokens': others} if others else {}),
            },
            'tokenizer_config.json': config,
        }
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')

    def __len__(self) -> int:
        """Return the highest id and one: the SentencePiece model's ids and the added ones."""
        return max([self._pieces.get_piece_size(), *(index + 1 for index in self._texts)])

    def __contains__(self, text: str) -> bool:
        """Return whether `text` is a token of its own, added or special."""
        return text in self._added or text in self._special

    @property
    def seg_token_id(self) -> int:
        """The id of [SEG].

        Raises:
            CheckpointError: the folder has none, so it is not LISA's.
        """
        if SEG not in self._added:
            raise CheckpointError(
                f'the tokenizer has no {SEG} among its added tokens '
                f'({", ".join(self._added) or "none"}): this is not the tokenizer of a LISA'
            )
        return self._added[SEG]

    def _id(self, token: str) -> int:
        return self._added[token] if token in self._added else self._pieces.piece_to_id(token)

    # ---- words to ids

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Return the ids of `text`, without <s> in front.

        Args:
            text: any text; '' gives no ids.
            specials: tokens written out in `text` ("[SEG]", "</s>") become those tokens, as the
                original does it. By default they are plain letters, so that nobody makes a mask
                or ends an answer by typing.
        """
        return self.encode_parts(self.split(text) if specials else [text])

    def split(self, text: str) -> list[str | Special]:
        """Return `text` in runs, with every token that is written out in it as a Special."""
        return [
            Special(run) if index % 2 else run
            for index, run in enumerate(self._splitter.split(text))
        ]

    def encode_parts(self, parts: Iterable[str | Special]) -> list[int]:
        """Return the ids of plain text and Specials in a row; neighbouring text is one run."""
        runs: list[str | Special] = []
        for part in parts:
            if isinstance(part, str) and runs and isinstance(runs[-1], str):
                runs[-1] += part
            else:
                runs.append(part)
        ids: list[int] = []
        for index, run in enumerate(runs):
            if isinstance(run, Special):
                ids.append(self._id(run.text))
                continue
            text = run
            if index > 0 and self._strips(runs[index - 1])[1]:
                text = text.lstrip()
            if index + 1 < len(runs) and self._strips(runs[index + 1])[0]:
                text = text.rstrip()
            ids += self._pieces.encode(text)
        return ids

    def _strips(self, token: Special) -> tuple[bool, bool]:
        """Return whether the token eats whitespace to its left, to its right."""
        return self._special.get(token.text, (True, True))

    # ---- ids to words

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of `ids`; [SEG] is never skipped, for it is an added token.

        Spacing is the original's: added tokens stand between spaces ("Sure, [SEG] ."), and text
        before a </s> is set off from what precedes it. An id without a text reads as <unk>: a
        model may have more words than its tokenizer, for some round their number up.
        """
        sections: list[list[str] | str] = []  # added tokens stand alone, the rest in lists
        for index in ids:
            token = self.token(int(index))
            if skip_special_tokens and token in self._special:
                continue
            if token in self._added:
                sections.append(token)
            elif sections and isinstance(sections[-1], list):
                sections[-1].append(token)
            else:
                sections.append([token])
        text = ' '.join(s if isinstance(s, str) else self._join(s) for s in sections)
        return _clean_up(text) if self._clean_up_spaces else text

    def token(self, index: int) -> str:
        """Return the token of an id: a SentencePiece piece or an added token, else <unk>."""
        known = 0 <= index < self._pieces.get_piece_size()
        piece = self._pieces.id_to_piece(index if known else self.unk_token_id)
        return self._texts.get(index) or piece

    def _join(self, tokens: list[str]) -> str:
        """Return the text of pieces among which </s>, <s> and <unk> may stand."""
        text, run, after_special = '', [], False
        for index, token in enumerate(tokens):
            if token in self._special:
                space = ' ' if index > 0 and not after_special else ''
                text += space + self._pieces.decode(run) + token
                run, after_special = [], True
            else:
                run.append(token)
                after_special = False
        return text + self._pieces.decode(run)

    def stream(self) -> TokenStream:
        """Return a decoder for ids that come one at a time."""
        return TokenStream(self)


class TokenStream:
    """Turns ids into text to append, as they come; special tokens but [SEG] are left out."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ''

    def push(self, token_id: int) -> str:
        """Return the text that this id adds; '' while a character lacks some of its bytes."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.endswith('\N{REPLACEMENT CHARACTER}') or not text.startswith(self._shown):
            return ''
        added, self._shown = text[len(self._shown) :], text
        return added


def _read_json(path: Path) -> dict:
    plain = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    if not isinstance(plain, dict):
        raise ValueError(f'{path.name} holds a {type(plain).__name__}, not an object')
    return plain


def _token(entry: str | dict, strips: bool) -> tuple[str, tuple[bool, bool]]:
    """Return a token's text and which sides it strips; bare strings strip both sides or none."""
    if isinstance(entry, str):
        return entry, (strips, strips)
    return entry['content'], (bool(entry.get('lstrip')), bool(entry.get('rstrip')))


def _clean_up(text: str) -> str:
    """Return text without spaces before punctuation and contractions, by transformers' list."""
    for mark in (' .', ' ?', ' !', ' ,'):
        text = text.replace(mark, mark[1:])
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(' ' + ending, ending)
    return text
