# SPDX-License-Identifier: Apache-2.0
"""Convert text to token ids and back, exactly as the tokenizer that LISA was trained with.

LISA's weights expect the ids of transformers 4.31's slow LlamaTokenizer. It gives each run of text
between special tokens to SentencePiece, and drops whitespace next to *added* tokens ([SEG],
<im_start>, <im_end>). With `legacy`, each run begins with a space; without it, only the first one.
The checkpoint decides that: it is true for LISA and SESAME, false for LISA++. Later versions of
transformers do all of this differently, so this module implements the rules itself
(test/test_tokenizer.py and test/test_family_parity.py have the originals' results).
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from lisa_ros.error_text import error_summary, short_repr
from lisa_ros.errors import CheckpointError
from lisa_ros.model.file_checks import check_file
from lisa_ros.model.json_file import JsonFields
from lisa_ros.model.model_folder import describe_folder
from lisa_ros.results import SEG

SPACE = '\N{LOWER ONE EIGHTH BLOCK}'  # SentencePiece's symbol for a space
IMAGE_MARKS = ('<im_start>', '<im_end>')  # around the image in the prompts of most checkpoints
_REPLACEMENT = '\N{REPLACEMENT CHARACTER}'  # each byte of an incomplete character
_MAX_INCOMPLETE_BYTES = 3  # of a character in UTF-8, which has at most 4
_KEPT_IDS = 8  # that a stream decodes again: an incomplete character and what is before it
_ROLES = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>', 'pad_token': None}
_MAX_PIECES_BYTES = 32 * 2**20  # of tokenizer.model; that of LLaMA has 0.5 MB
_MAX_ID = 2**31 - 1
_MAX_ADDED = 10_000  # added tokens; a released LISA has 3


@dataclass(frozen=True)
class SpecialToken:
    """A special or added token in the parts of a prompt: it becomes one id."""

    text: str


class Tokenizer:
    """A SentencePiece model with added tokens. Immutable: threads may share it."""

    def __init__(
        self,
        pieces: SentencePieceProcessor,
        added: dict[str, int],
        special: dict[str, tuple[bool, bool]],
        roles: dict[str, str],
        *,
        model_max_length: int | None = None,
        clean_up_spaces: bool = False,
        legacy: bool = True,
    ):
        """Make a tokenizer from its parts; `load` reads them from a folder.

        Args:
            pieces: the SentencePiece model.
            added: the id of each token that the SentencePiece model does not have.
            special: the tokens that `skip_special_tokens` drops; for each, whether encoding strips
                whitespace to its left, and to its right.
            roles: the tokens of 'bos_token', 'eos_token', 'unk_token' and 'pad_token'.
            model_max_length: length limit of training conversations [tokens]; None: unknown.
            clean_up_spaces: remove spaces before punctuation when decoding.
            legacy: begin each run of text with a space, not only the first one.
        """
        self._pieces = pieces
        self._added = dict(added)
        self._special = dict(special)
        self._roles = dict(roles)
        self._texts = {index: text for text, index in added.items()}
        self._clean_up_spaces = clean_up_spaces
        self.legacy = legacy
        self._uses_image_marks = True
        self.model_max_length = model_max_length
        self.bos_token, self.eos_token = roles['bos_token'], roles['eos_token']
        self.unk_token_id = self._id(roles['unk_token'])
        self.bos_token_id, self.eos_token_id = self._id(self.bos_token), self._id(self.eos_token)
        self.pad_token_id = self._id(roles.get('pad_token') or roles['unk_token'])
        names = sorted({*self._added, *self._special}, key=len, reverse=True)  # longest first
        self._splitter = re.compile('(' + '|'.join(map(re.escape, names)) + ')')

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.model and the tokenizer's JSON files in a folder.

        Added tokens come from added_tokens.json, or from added_tokens_decoder in
        tokenizer_config.json in folders of newer libraries.

        Raises:
            CheckpointError: a file is missing or cannot be read, or a value in it has another
                type.
        """
        folder = Path(folder)
        pieces = _read_pieces(folder / 'tokenizer.model')
        config = _read_fields(folder / 'tokenizer_config.json')
        added_path = folder / 'added_tokens.json'
        decoder, added = _decoder(config), _added_tokens(_read_fields(added_path))
        _check_agreement(decoder, added, added_path)
        added = {**decoder, **added}
        added = {text: index for text, index in added.items() if index >= pieces.get_piece_size()}
        _check_added(added, added_path)
        special, roles = _special_tokens(config, _read_fields(folder / 'special_tokens_map.json'))
        _check_roles(roles, added, pieces, folder)
        max_length = config.number('model_max_length', None, minimum=1)
        return cls(
            pieces,
            added,
            special,
            roles,
            # "no limit" is written as 10^30
            model_max_length=int(max_length) if max_length and max_length < 1e9 else None,
            clean_up_spaces=config.flag('clean_up_tokenization_spaces', True),
            legacy=config.flag('legacy', True),
        )

    def save(self, folder: str | Path) -> None:
        """Write the files that `load` reads, in the format of transformers 4.31."""
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
            'legacy': self.legacy,
            'clean_up_tokenization_spaces': self._clean_up_spaces,
            'model_max_length': self.model_max_length,
        }
        additional = [flag for text, flag in flags.items() if text not in self._roles.values()]
        contents = {
            'added_tokens.json': self._added,
            'special_tokens_map.json': {
                **roles,
                **({'additional_special_tokens': additional} if additional else {}),
            },
            'tokenizer_config.json': config,
        }
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')

    def __len__(self) -> int:
        """Return the highest id plus one, of SentencePiece's and added tokens."""
        return max([self._pieces.get_piece_size(), *(index + 1 for index in self._texts)])

    def __contains__(self, text: str) -> bool:
        """Return whether `text` is an added or special token."""
        return text in self._added or text in self._special

    @property
    def seg_token_id(self) -> int:
        """The id of [SEG].

        Raises:
            CheckpointError: there is no such token.
        """
        if SEG not in self._added:
            raise CheckpointError(
                f'the tokenizer has no {SEG} among its added tokens '
                f'({", ".join(self._added) or "none"}); expected the tokenizer of a LISA'
            )
        return self._added[SEG]

    @property
    def image_marks(self) -> tuple[str, ...]:
        """The tokens before and after the image in a prompt; empty if the model has none."""
        has_marks = self._uses_image_marks and all(mark in self for mark in IMAGE_MARKS)
        return IMAGE_MARKS if has_marks else ()

    def without_image_marks(self) -> Tokenizer:
        """Return a tokenizer for a model that was trained without them; the ids are the same."""
        tokenizer = copy.copy(self)
        tokenizer._uses_image_marks = False
        return tokenizer

    def _id(self, token: str) -> int:
        return self._added[token] if token in self._added else self._pieces.piece_to_id(token)

    # ---- text to ids

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Return the ids of `text`, without <s> at the start.

        Args:
            text: any text; '' gives no ids.
            parse_special: tokens written in `text` ("[SEG]", "</s>") become those tokens, as in
                the original. By default they are ordinary text, so that a user who types them
                neither makes a mask nor ends an answer.
        """
        return self.encode_parts(self.split_special(text) if parse_special else [text])

    def split_special(self, text: str) -> list[str | SpecialToken]:
        """Split `text` into text and the special or added tokens that are written in it."""
        return [
            SpecialToken(run) if index % 2 else run
            for index, run in enumerate(self._splitter.split(text))
        ]

    def encode_parts(self, parts: Iterable[str | SpecialToken]) -> list[int]:
        """Return the ids of text and special tokens in order; adjacent text is joined first."""
        runs: list[str | SpecialToken] = []
        for part in parts:
            if isinstance(part, str) and runs and isinstance(runs[-1], str):
                runs[-1] += part
            else:
                runs.append(part)
        ids: list[int] = []
        for index, run in enumerate(runs):
            if isinstance(run, SpecialToken):
                ids.append(self._id(run.text))
                continue
            text = run if self.legacy else run.replace(SPACE, ' ')
            if index > 0 and self._strips(runs[index - 1])[1]:
                text = text.lstrip()
            if index + 1 < len(runs) and self._strips(runs[index + 1])[0]:
                text = text.rstrip()
            ids += self._encode_run(text, is_first=index == 0)
        return ids

    def _encode_run(self, text: str, is_first: bool) -> list[int]:
        """Return the ids of text without special tokens; `is_first`: nothing comes before it."""
        if self.legacy or is_first or text.startswith(' '):
            return self._pieces.encode(text)
        pieces = self._pieces.encode(text, out_type=str)
        if pieces and pieces[0].startswith(SPACE):
            # as the original: the rest of a piece that is no piece itself becomes <unk>
            pieces = [pieces[0].removeprefix(SPACE), *pieces[1:]]
        return [self._pieces.piece_to_id(piece) for piece in pieces if piece]

    def _strips(self, token: SpecialToken) -> tuple[bool, bool]:
        """Return whether the token strips whitespace to its left, and to its right."""
        return self._special.get(token.text, (True, True))

    # ---- ids to text

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = False, *, clean_up: bool = True
    ) -> str:
        """Return the text of `ids`.

        Spacing is the original's: spaces around added tokens ("Sure, [SEG] ."), and a space before
        the text that precedes a </s>. An id without a token decodes as <unk>: the vocabulary of a
        model may be larger than that of its tokenizer, because libraries round its size up.

        Args:
            ids: token ids.
            skip_special_tokens: leave out special tokens, but not [SEG]: it is an added token.
            clean_up: remove spaces before punctuation, if tokenizer_config.json says so.
        """
        sections: list[list[str] | str] = []  # added tokens as str, the rest in lists
        for index in ids:
            token = self.id_to_token(int(index))
            if skip_special_tokens and token in self._special:
                continue
            if token in self._added:
                sections.append(token)
            elif sections and isinstance(sections[-1], list):
                sections[-1].append(token)
            else:
                sections.append([token])
        text = ' '.join(s if isinstance(s, str) else self._join(s) for s in sections)
        return _clean_up(text) if self._clean_up_spaces and clean_up else text

    def id_to_token(self, index: int) -> str:
        """Return the SentencePiece piece or added token of an id; <unk> if there is none."""
        is_piece = 0 <= index < self._pieces.get_piece_size()
        piece = self._pieces.id_to_piece(index if is_piece else self.unk_token_id)
        return self._texts.get(index) or piece

    def is_special(self, index: int) -> bool:
        """Return whether an id is that of a special token, such as </s>; that of [SEG] is not."""
        return self.id_to_token(index) in self._special

    def _join(self, tokens: list[str]) -> str:
        """Return the text of pieces, which may include </s>, <s> and <unk>."""
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
        """Return a decoder for ids that arrive one at a time."""
        return TokenStream(self)


class TokenStream:
    """Decodes ids one at a time into text to append. Leaves out special tokens, but not [SEG].

    Spaces are not cleaned up: that would change text that was given out before. An id costs the
    same however long the answer is: only the newest ids are decoded again.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # the newest ones
        self._given = ''  # the part of their text that was given out

    def push(self, token_id: int) -> str:
        """Return the text that this id adds; '' while a character is incomplete."""
        if self._tokenizer.is_special(token_id):
            return ''
        self._ids.append(token_id)
        text = self._decode(self._ids)
        end = len(text)
        while text.endswith(_REPLACEMENT, 0, end) and len(text) - end < _MAX_INCOMPLETE_BYTES:
            end -= 1
        complete, incomplete = text[:end], text[end:]
        if not complete.startswith(self._given):
            return ''
        added, self._given = complete[len(self._given) :], complete
        if len(self._ids) >= 2 * _KEPT_IDS:
            self._forget_older_ids(incomplete)
        return added

    def _forget_older_ids(self, incomplete: str) -> None:
        """Keep the newest ids, if their text includes the incomplete character and what is before.

        The first piece of a text loses its space, so something must come before the next id.
        """
        ids = self._ids[-_KEPT_IDS:]
        text = self._decode(ids)
        given = text.removesuffix(incomplete)
        if given and text.endswith(incomplete):
            self._ids, self._given = ids, given

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up=False)


def _read_pieces(path: Path) -> SentencePieceProcessor:
    """Return a SentencePiece model.

    Raises:
        CheckpointError: the file is missing, unreadable, too large or no such model.
    """
    if not os.path.lexists(path):
        raise CheckpointError(
            f'{path.parent} has no tokenizer.model (SentencePiece), found '
            f'{describe_folder(path.parent)}; a tokenizer.json does not replace it: download the '
            'folder again, or copy the file from the base model'
        )
    size = check_file(path)
    if size > _MAX_PIECES_BYTES:
        raise CheckpointError(
            f'{path}: has {size} bytes; expected at most {_MAX_PIECES_BYTES} of a SentencePiece '
            'model'
        )
    try:
        pieces = SentencePieceProcessor(model_proto=path.read_bytes())
        count = pieces.get_piece_size()
        pieces.id_to_piece(list(range(count)))  # fails now, not in an answer, if one is not UTF-8
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f'{path}: cannot be read as a SentencePiece model ({error_summary(error)}); download '
            'it again'
        ) from error
    if count < 1:
        raise CheckpointError(f'{path}: holds no SentencePiece model; download it again')
    if not 0 <= pieces.unk_id() < count:
        raise CheckpointError(
            f'{path}: none of its {count} pieces stands for unknown text; expected one, such as '
            '<unk>: download it again'
        )
    return pieces


def _read_fields(path: Path) -> JsonFields:
    """Return the object in a JSON file; an empty one if there is no file."""
    return JsonFields.read(path) if os.path.lexists(path) else JsonFields({}, path)


def _added_tokens(fields: JsonFields) -> dict[str, int]:
    """Return the ids in added_tokens.json."""
    return {text: fields.integer(text, minimum=0, maximum=_MAX_ID) for text in fields.values}


def _decoder(config: JsonFields) -> dict[str, int]:
    """Return the ids of `added_tokens_decoder` in tokenizer_config.json."""
    entries = config.object('added_tokens_decoder', {})
    for index in entries.values:
        if not (index.isascii() and index.isdigit() and len(index) < 10):
            raise entries.error(index, 'ids as keys')
    return {entries.object(index).text('content'): int(index) for index in entries.values}


def _check_agreement(decoder: dict[str, int], added: dict[str, int], path: Path) -> None:
    """Check that two lists of added tokens give each token one id.

    Args:
        decoder: of tokenizer_config.json.
        added: of added_tokens.json.
        path: of added_tokens.json.

    Raises:
        CheckpointError: they disagree.
    """
    for text in decoder.keys() & added.keys():
        if decoder[text] != added[text]:
            raise CheckpointError(
                f'{path}: gives {short_repr(text)} the id {added[text]}, and '
                f'tokenizer_config.json the id {decoder[text]}: files of two '
                'checkpoints are mixed: download all files of one of them again'
            )


def _check_added(added: dict[str, int], path: Path) -> None:
    """Check the texts and ids of added tokens.

    Raises:
        CheckpointError: a text is empty, two have one id, or there are too many.
    """
    if '' in added:  # it would be found between any two letters
        raise CheckpointError(
            f'{path}: an added token has no text; expected texts such as "[SEG]"'
        )
    if len(set(added.values())) < len(added):
        ids = sorted(added.values())
        twice = next(a for a, b in pairwise(ids) if a == b)
        raise CheckpointError(f'{path}: two added tokens have the id {twice}; expected one each')
    if len(added) > _MAX_ADDED:
        raise CheckpointError(
            f'{path}: has {len(added)} added tokens; expected at most {_MAX_ADDED}'
        )


def _check_roles(
    roles: dict[str, str], added: dict[str, int], pieces: SentencePieceProcessor, folder: Path
) -> None:
    """Check that <s> and </s> are tokens: an answer would never end.

    Raises:
        CheckpointError: one of them is not in the vocabulary.
    """
    for role in ('bos_token', 'eos_token'):
        token = roles[role]
        if token not in added and pieces.id_to_piece(pieces.piece_to_id(token)) != token:
            raise CheckpointError(
                f'{folder}: {role} is {short_repr(token)} in tokenizer_config.json or '
                'special_tokens_map.json; expected a token of the vocabulary, such as "</s>"'
            )


def _special_tokens(
    config: JsonFields, special_tokens_map: JsonFields
) -> tuple[dict[str, tuple[bool, bool]], dict[str, str]]:
    """Return which sides each special token strips, and the token of each role.

    Version 4.31 reads the roles from tokenizer_config.json, where a bare string strips nothing.
    special_tokens_map.json overrides them, and there a bare string strips both sides.
    """
    entries = {
        role: _token(config, role, config.values.get(role) or default, bare_strips=False)
        for role, default in _ROLES.items()
        if config.values.get(role) or default
    }
    bare_keys = set()
    for role, entry in special_tokens_map.values.items():
        tokens = entry if isinstance(entry, list) and role not in _ROLES else [entry]
        for number, token in enumerate(tokens):
            if token is None:  # no such token
                continue
            key = role if role in _ROLES else f'{role} {number}'
            entries[key] = _token(special_tokens_map, role, token, bare_strips=True)
            bare_keys |= {key} if isinstance(token, str) else set()
    # if a token has two roles (<unk> is also the padding), the entry with flags wins
    special = {text: strips for key, (text, strips) in entries.items() if key in bare_keys}
    special |= {text: strips for key, (text, strips) in entries.items() if key not in bare_keys}
    roles = {role: entries[role][0] for role in _ROLES if role in entries}
    return special, roles


def _token(
    fields: JsonFields, role: str, entry: object, bare_strips: bool
) -> tuple[str, tuple[bool, bool]]:
    """Return a token's text and which sides it strips; a bare string strips both or none.

    Raises:
        CheckpointError: the entry of `role` is neither a text nor an object with its content.
    """
    if isinstance(entry, str) and entry:
        return entry, (bare_strips, bare_strips)
    if not isinstance(entry, dict):
        raise fields.error(role, 'a token: "</s>", or {"content": "</s>", "lstrip": false, ...}')
    token = JsonFields(entry, fields.path, f'{role}.')
    if not token.text('content'):
        raise token.error('content', 'the text of a token')
    return token.text('content'), (token.flag('lstrip', False), token.flag('rstrip', False))


def _clean_up(text: str) -> str:
    """Remove spaces before punctuation and contractions, by the list of transformers."""
    for mark in (' .', ' ?', ' !', ' ,'):
        text = text.replace(mark, mark[1:])
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(' ' + ending, ending)
    return text
