# SPDX-License-Identifier: Apache-2.0
import json
import random
import shutil

import pytest
from golden import DATA

from lisa_ros.errors import CheckpointError
from lisa_ros.model.tokenizer import SpecialToken, Tokenizer

TABLE = json.loads((DATA / 'tokenizer.json').read_text(encoding='utf-8'))
FOLDER = DATA / 'ckpt_256'


@pytest.fixture(scope='module')
def tokenizer() -> Tokenizer:
    return Tokenizer.load(FOLDER)


@pytest.mark.parity
@pytest.mark.parametrize('case', TABLE['encode'], ids=lambda case: repr(case['text'])[:30])
def test_encode_gives_the_originals_ids(tokenizer, case):
    assert tokenizer.encode(case['text'], parse_special=True) == case['ids_no_special']


@pytest.mark.parity
@pytest.mark.parametrize('case', TABLE['decode'], ids=lambda case: repr(case['text'])[:30])
def test_decode_gives_the_originals_text(tokenizer, case):
    assert tokenizer.decode(case['ids']) == case['decoded']
    assert tokenizer.decode(case['ids'], skip_special_tokens=True) == case['decoded_skip']


@pytest.mark.parity
def test_special_ids_are_the_originals(tokenizer):
    assert tokenizer.seg_token_id == TABLE['seg_token_idx']
    assert len(tokenizer) == TABLE['len']
    assert tokenizer.pad_token_id == TABLE['pad_token_id']
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.model_max_length == 512


@pytest.mark.parametrize('token', ['[SEG]', '<im_start>', '</s>', '<s>', '<unk>'])
def test_a_typed_special_token_is_text_by_default(tokenizer, token):
    ids = tokenizer.encode(f'the token {token} here')
    assert not {tokenizer.seg_token_id, 705, 706, 0, 1, 2} & set(ids)
    assert tokenizer.decode(ids) == f'the token {token} here'


def test_adjacent_text_is_encoded_as_one_run(tokenizer):
    parts = [SpecialToken('<im_end>'), '\n', 'What is', ' this?']
    assert tokenizer.encode_parts(parts) == tokenizer.encode(
        '<im_end>\nWhat is this?', parse_special=True
    )


@pytest.mark.parametrize('text', ['Sure, [SEG] and [SEG].</s>', 'ünïcode 画像 [SEG] end</s>'])
def test_streamed_text_joins_to_the_whole_text(tokenizer, text):
    ids = tokenizer.encode(text, parse_special=True)
    stream = tokenizer.stream()
    pieces = [stream.push(index) for index in ids]
    assert ''.join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert not any('\N{REPLACEMENT CHARACTER}' in piece for piece in pieces)


def byte_ids(tokenizer, data):
    """Return the ids of SentencePiece's pieces for bytes, which texts without a piece have."""
    ids = {tokenizer.id_to_token(index): index for index in range(len(tokenizer))}
    return [ids[f'<0x{byte:02X}>'] for byte in data]


@pytest.mark.parametrize('seed', range(40))
def test_a_stream_of_any_ids_is_the_whole_text(tokenizer, seed):
    chooser = random.Random(seed)
    kinds = [
        lambda: [chooser.randrange(len(tokenizer))],
        lambda: byte_ids(tokenizer, chooser.choice(['ü', '画', '\U0001f375']).encode()),
        lambda: byte_ids(tokenizer, [chooser.randrange(256)]),
        lambda: [tokenizer.encode(' the')[0]] * chooser.randrange(1, 4),
        lambda: tokenizer.encode(chooser.choice(['[SEG]', '</s>', '<s>']), parse_special=True),
    ]
    chosen = chooser.sample(kinds, chooser.randrange(1, len(kinds) + 1))
    ids = [index for _ in range(200) for index in chooser.choice(chosen)()]
    ids += tokenizer.encode('a mug')  # complete
    stream = tokenizer.stream()
    streamed = ''
    for count, index in enumerate(ids, 1):
        streamed += stream.push(index)
        if count % 50 == 0:
            assert tokenizer.decode(ids[:count], True, clean_up=False).startswith(streamed)
    assert streamed == tokenizer.decode(ids, True, clean_up=False)


@pytest.mark.parametrize(
    'repeated',
    [
        pytest.param('the mug ', id='words'),
        pytest.param('画', id='characters of bytes'),
        pytest.param('</s>', id='special tokens'),
        pytest.param('[SEG]', id='added tokens'),
        pytest.param(b'\xb3', id='bytes without a character'),
        pytest.param(b'\xf0\x9f\x98', id='halves of characters'),
    ],
)
def test_an_id_of_a_long_stream_costs_as_much_as_the_first_ones(tokenizer, monkeypatch, repeated):
    if isinstance(repeated, bytes):
        ids = byte_ids(tokenizer, repeated * 500)
    else:
        ids = tokenizer.encode(repeated * 500, parse_special=True)
    stream, decode, decoded = tokenizer.stream(), Tokenizer.decode, []

    def counted(self, given, *args, **kwargs):
        decoded.append(len(given))
        return decode(self, given, *args, **kwargs)

    monkeypatch.setattr(Tokenizer, 'decode', counted)
    for index in ids:
        stream.push(index)
    assert len(ids) >= 500
    assert max(decoded, default=0) <= 16


def test_a_stream_loses_no_text_where_spaces_are_cleaned_up(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    path = tmp_path / 'tokenizer_config.json'
    path.write_text(
        json.dumps({**json.loads(path.read_text()), 'clean_up_tokenization_spaces': True})
    )
    cleaned = Tokenizer.load(tmp_path)
    ids = cleaned.encode("The sign says ' stop ' on it. It is [SEG].", parse_special=True)
    stream = cleaned.stream()
    text = ''.join(map(stream.push, ids))
    assert text == tokenizer.decode(ids, skip_special_tokens=True)
    assert cleaned.decode(ids, skip_special_tokens=True) != text  # "says'stop'on it"


def test_added_tokens_of_newer_folders_are_read(tmp_path, tokenizer):
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
    assert newer.encode(text, parse_special=True) == tokenizer.encode(text, parse_special=True)


def test_a_saved_tokenizer_loads_unchanged(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    reloaded = Tokenizer.load(tmp_path)
    for case in TABLE['encode']:
        assert reloaded.encode(case['text'], parse_special=True) == case['ids_no_special']
    for case in TABLE['decode']:
        assert reloaded.decode(case['ids']) == case['decoded']
    assert reloaded.pad_token_id == tokenizer.pad_token_id
    assert reloaded.model_max_length == tokenizer.model_max_length


def test_a_folder_without_tokenizer_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=rf'{tmp_path}.*tokenizer\.model'):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_seg_is_refused(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / 'added_tokens.json').write_text('{"<pad>": 704}')
    with pytest.raises(CheckpointError, match=r'no \[SEG\].*<pad>'):
        _ = Tokenizer.load(tmp_path).seg_token_id


def test_an_id_without_a_token_decodes_as_unknown(tokenizer):
    ids = tokenizer.encode('Sure, [SEG].</s>', parse_special=True)
    for unknown_id in (len(tokenizer), 10**6, -1):
        assert tokenizer.decode([unknown_id]) == '<unk>'
        with_unknown = [*ids[:2], unknown_id, *ids[2:]]
        assert tokenizer.decode(with_unknown, skip_special_tokens=True) == tokenizer.decode(
            ids, skip_special_tokens=True
        )


def test_the_length_is_the_highest_id_plus_one(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / 'added_tokens.json').write_text('{"[SEG]": 900}')
    gap = Tokenizer.load(tmp_path)
    assert len(gap) == 901
    assert gap.decode([899]) == '<unk>'


def test_json_that_is_not_an_object_is_an_error(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / 'tokenizer_config.json').write_text('[]')
    with pytest.raises(CheckpointError, match=r'tokenizer_config\.json: holds a list'):
        Tokenizer.load(tmp_path)
