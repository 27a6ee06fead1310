# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import pytest
from golden import DATA

from lisa_ros.errors import CheckpointError
from lisa_ros.model.tokenizer import Special, Tokenizer

TABLE = json.loads((DATA / 'tokenizer.json').read_text(encoding='utf-8'))
FOLDER = DATA / 'ckpt_256'


@pytest.fixture(scope='module')
def tokenizer() -> Tokenizer:
    return Tokenizer.load(FOLDER)


@pytest.mark.parity
@pytest.mark.parametrize('case', TABLE['encode'], ids=lambda case: repr(case['text'])[:30])
def test_text_becomes_the_originals_ids(tokenizer, case):
    assert tokenizer.encode(case['text'], specials=True) == case['ids_no_special']


@pytest.mark.parity
@pytest.mark.parametrize('case', TABLE['decode'], ids=lambda case: repr(case['text'])[:30])
def test_ids_become_the_originals_text(tokenizer, case):
    assert tokenizer.decode(case['ids']) == case['decoded']
    assert tokenizer.decode(case['ids'], skip_special_tokens=True) == case['decoded_skip']


@pytest.mark.parity
def test_the_ids_of_roles_are_the_originals(tokenizer):
    assert tokenizer.seg_token_id == TABLE['seg_token_idx']
    assert len(tokenizer) == TABLE['len']
    assert tokenizer.pad_token_id == TABLE['pad_token_id']
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.model_max_length == 512


@pytest.mark.parametrize('token', ['[SEG]', '<im_start>', '</s>', '<s>', '<unk>'])
def test_a_typed_token_is_letters_by_default(tokenizer, token):
    ids = tokenizer.encode(f'the token {token} here')
    assert not {tokenizer.seg_token_id, 705, 706, 0, 1, 2} & set(ids)
    assert tokenizer.decode(ids) == f'the token {token} here'


def test_neighbouring_text_is_one_run(tokenizer):
    parts = [Special('<im_end>'), '\n', 'What is', ' this?']
    assert tokenizer.encode_parts(parts) == tokenizer.encode(
        '<im_end>\nWhat is this?', specials=True
    )


@pytest.mark.parametrize('text', ['Sure, [SEG] and [SEG].</s>', 'ünïcode 画像 [SEG] end</s>'])
def test_streamed_pieces_join_to_the_whole_text(tokenizer, text):
    ids = tokenizer.encode(text, specials=True)
    stream = tokenizer.stream()
    pieces = [stream.push(index) for index in ids]
    assert ''.join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert not any('\N{REPLACEMENT CHARACTER}' in piece for piece in pieces)


def test_added_tokens_of_newer_folders_are_found(tmp_path, tokenizer):
    for name in ('tokenizer.model', 'special_tokens_map.json'):
        shutil.copy(FOLDER / name, tmp_path)
    decoder = {
        str(index): {'content': text, 'lstrip': False, 'rstrip': False, 'special': index < 3}
        for text, index in {'<unk>': 0, '<s>': 1, '</s>': 2, '[SEG]': 704}.items()
    }
    config = {'added_tokens_decoder': decoder, 'clean_up_tokenization_spaces': False}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    newer = Tokenizer.load(tmp_path)
    assert newer.seg_token_id == 704
    text = 'Sure, [SEG].</s>'
    assert newer.encode(text, specials=True) == tokenizer.encode(text, specials=True)


def test_a_saved_tokenizer_is_the_same_one(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    for case in TABLE['encode']:
        assert again.encode(case['text'], specials=True) == case['ids_no_special']
    for case in TABLE['decode']:
        assert again.decode(case['ids']) == case['decoded']
    assert again.pad_token_id == tokenizer.pad_token_id
    assert again.model_max_length == tokenizer.model_max_length


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=rf'{tmp_path}.*tokenizer\.model'):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_seg_is_refused(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / 'added_tokens.json').write_text('{"<pad>": 704}')
    with pytest.raises(CheckpointError, match=r'no \[SEG\].*<pad>'):
        _ = Tokenizer.load(tmp_path).seg_token_id


def test_an_id_without_a_text_reads_as_unknown(tokenizer):
    ids = tokenizer.encode('Sure, [SEG].</s>', specials=True)
    for beyond in (len(tokenizer), 10**6, -1):
        assert tokenizer.decode([beyond]) == '<unk>'
        with_it = [*ids[:2], beyond, *ids[2:]]
        assert tokenizer.decode(with_it, skip_special_tokens=True) == tokenizer.decode(
            ids, skip_special_tokens=True
        )


def test_the_length_reaches_to_the_highest_id(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / 'added_tokens.json').write_text('{"[SEG]": 900}')
    gap = Tokenizer.load(tmp_path)
    assert len(gap) == 901
    assert gap.decode([899]) == '<unk>'


def test_json_that_is_no_object_is_named(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / 'tokenizer_config.json').write_text('[]')
    with pytest.raises(CheckpointError, match=r'tokenizer_config\.json holds a list'):
        Tokenizer.load(tmp_path)
