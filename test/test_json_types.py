# SPDX-License-Identifier: Apache-2.0
"""A wrong type in a JSON file of a model is an error that names the file, the key and the cure."""

import json
import shutil
from pathlib import Path

import pytest
from golden import DATA, backend
from hostile_folders import make_released, set_keys

from lisa_ros.errors import CheckpointError, SettingsError
from lisa_ros.model import checkpoint, export
from lisa_ros.model.image_processing import ClipPreprocessing
from lisa_ros.model.json_file import JsonFields, read_json
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception.backend import LoadOptions
from lisa_ros.perception.registry import load_backend

TOKENIZER = DATA / 'ckpt_256'
TOKENIZER_CONFIG, ADDED, SPECIAL = (
    *('tokenizer_config.json', 'added_tokens.json', 'special_tokens_map.json'),
)


@pytest.mark.parametrize(
    ('name', 'values', 'message'),
    [
        (
            TOKENIZER_CONFIG,
            {'added_tokens_decoder': []},
            'decoder is []; expected an object',
        ),
        (TOKENIZER_CONFIG, {'added_tokens_decoder': {'7': 'x'}}, "added_tokens_decoder.7 is 'x'"),
        (TOKENIZER_CONFIG, {'added_tokens_decoder': {'7': {}}}, '7.content is missing'),
        (TOKENIZER_CONFIG, {'added_tokens_decoder': {'7': {'content': 7}}}, 'content is 7; exp'),
        (TOKENIZER_CONFIG, {'added_tokens_decoder': {'x': {'content': 'y'}}}, 'ids as keys'),
        (TOKENIZER_CONFIG, {'bos_token': 1}, 'bos_token is 1; expected a token: "</s>"'),
        (TOKENIZER_CONFIG, {'eos_token': ['</s>']}, "eos_token is ['</s>']; expected a token"),
        (TOKENIZER_CONFIG, {'unk_token': {'content': None}}, 'unk_token.content is None'),
        (TOKENIZER_CONFIG, {'pad_token': {'lstrip': True}}, 'pad_token.content is missing'),
        (TOKENIZER_CONFIG, {'eos_token': {'content': '</s>', 'lstrip': 'no'}}, "lstrip is 'no'"),
        (TOKENIZER_CONFIG, {'model_max_length': '512'}, "model_max_length is '512'; expected a n"),
        (TOKENIZER_CONFIG, {'model_max_length': [512]}, 'model_max_length is [512]'),
        (TOKENIZER_CONFIG, {'clean_up_tokenization_spaces': 'false'}, 'expected true or false'),
        (TOKENIZER_CONFIG, {'legacy': 'false'}, "legacy is 'false'; expected true or false"),
        (ADDED, {'[SEG]': '704'}, "[SEG] is '704'; expected an integer"),
        (ADDED, {'[SEG]': 704.0}, '[SEG] is 704.0; expected an integer'),
        (ADDED, {'[SEG]': True}, '[SEG] is True; expected an integer'),
        (ADDED, {'[SEG]': None}, '[SEG] is None; expected an integer'),
        (ADDED, {'[SEG]': [704]}, '[SEG] is [704]; expected an integer'),
        (ADDED, {'[SEG]': -1}, '[SEG] is -1; expected 0 to 2147483647'),
        (SPECIAL, {'eos_token': 2}, 'eos_token is 2; expected a token'),
        (SPECIAL, {'bos_token': ''}, "bos_token is ''; expected a token"),
        (SPECIAL, {'pad_token': ['<unk>']}, "pad_token is ['<unk>']; expected a token"),
        (SPECIAL, {'unk_token': {}}, 'unk_token.content is missing'),
        (SPECIAL, {'additional_special_tokens': [3]}, 'additional_special_tokens is [3]'),
        (SPECIAL, {'additional_special_tokens': [['x']]}, "additional_special_tokens is [['x']]"),
        (SPECIAL, {'additional_special_tokens': {'a': 1}}, 'additional_special_tokens.content'),
    ],
)
def test_tokenizer(name, values, message, tmp_path):
    folder = shutil.copytree(TOKENIZER, tmp_path / 'tokenizer')
    set_keys(name, **values)(folder)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(folder)
    assert f'{folder / name}: ' in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize('value', [[], 'x', 3, None])
@pytest.mark.parametrize('name', [TOKENIZER_CONFIG, ADDED, SPECIAL])
def test_a_tokenizer_file_that_holds_no_object(name, value, tmp_path):
    folder = shutil.copytree(TOKENIZER, tmp_path / 'tokenizer')
    (folder / name).write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=rf'{name}: holds a .*expected an object'):
        Tokenizer.load(folder)


def test_null_is_no_token(tmp_path):
    folder = shutil.copytree(TOKENIZER, tmp_path / 'tokenizer')
    set_keys(SPECIAL, pad_token=None, additional_special_tokens=None)(folder)
    set_keys(TOKENIZER_CONFIG, model_max_length=None, added_tokens_decoder=None)(folder)
    assert Tokenizer.load(folder).pad_token_id == Tokenizer.load(TOKENIZER).pad_token_id


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'size': '224'}, "size is '224'; expected a number, {"),
        ({'size': [224]}, 'size is [224]'),
        ({'size': {'shortest_edge': '224'}}, "size.shortest_edge is '224'; expected an integer"),
        ({'size': {'height': 224.5, 'width': 224}}, 'size.height is 224.5; expected an integer'),
        ({'size': 0}, 'size is 0; expected 1 or more'),
        ({'crop_size': 'x'}, "crop_size is 'x'"),
        ({'crop_size': {'height': True, 'width': 224}}, 'crop_size.height is True'),
        ({'do_center_crop': 'false'}, "do_center_crop is 'false'; expected true or false"),
        ({'resample': 99}, 'resample is 99; expected 0 to'),
        ({'resample': 'bicubic'}, "resample is 'bicubic'"),
        ({'rescale_factor': [1]}, 'rescale_factor is [1]; expected a number'),
        ({'rescale_factor': 0}, 'rescale_factor is 0; expected 1e-06 or more'),
        ({'image_mean': 0.5}, 'image_mean is 0.5; expected a list of numbers'),
        ({'image_mean': [0.5, 0.5]}, 'image_mean is [0.5, 0.5]; expected three numbers'),
        ({'image_std': [0.5, 'x', 0.5]}, "image_std is [0.5, 'x', 0.5]; expected a list of fin"),
        ({'image_std': [0, 0, 0]}, 'image_std is [0, 0, 0]; expected three numbers of 1e-06'),
    ],
)
def test_preprocessing(values, message):
    with pytest.raises(CheckpointError) as caught:
        ClipPreprocessing.from_dict(values)
    assert f'preprocessor_config.json: {message}' in str(caught.value)


# Keys of a config.json that are read, and a value of a wrong type.
RELEASED_KEYS = {
    **dict.fromkeys(['vocab_size', 'hidden_size', 'num_hidden_layers'], '2'),
    **dict.fromkeys(['intermediate_size', 'num_attention_heads'], 2.0),
    **dict.fromkeys(['num_key_value_heads', 'head_dim', 'max_position_embeddings'], True),
    **dict.fromkeys(['bos_token_id', 'eos_token_id', 'pad_token_id'], '1'),
    **dict.fromkeys(['rms_norm_eps', 'rope_theta'], '1e-5'),
    **dict.fromkeys(['tie_word_embeddings', 'mm_use_im_start_end'], 'false'),
    **dict.fromkeys(['model_type', 'hidden_act', '_name_or_path', 'conv_type'], 7),
    **dict.fromkeys(['mm_vision_tower', 'mm_vision_select_feature'], 7),
    'mm_vision_select_layer': '-2',
    'rope_scaling': 'linear',
    **dict.fromkeys(['mm_projector_type', 'explain', 'answer_styles', 'point_rule'], 7),
}
OWN_KEYS = {
    **dict.fromkeys(['clip', 'llama', 'sam'], 'x'),
    **dict.fromkeys(['seg_token_id', 'out_dim', 'mm_vision_select_layer'], '1'),
    **dict.fromkeys(['template', 'explain', 'reason_question'], 7),
    **dict.fromkeys(['mm_projector_type', 'image_marks', 'answer_styles', 'point_rule'], 7),
    'confidence_threshold': 'high',
    'refine': 'off',
    'calibration': ['x'],
    'calibration_curve': [[0.5]],
}


@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    folder, lisa = tmp_path_factory.mktemp('toys'), backend(256)
    export.save(lisa.model, lisa.tokenizer, lisa.clip_preprocessing, folder / 'own')
    make_released(folder / 'released')
    return folder


@pytest.mark.parametrize(
    ('layout', 'key', 'value'),
    [
        (layout, key, value)
        for layout, keys in (('released', RELEASED_KEYS), ('own', OWN_KEYS))
        for key, value in keys.items()
    ],
)
def test_config(layout, key, value, toys, tmp_path):
    path = toys / layout / 'config.json'
    config = read_json(path)
    try:
        path.write_text(json.dumps({**config, key: value}))
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(toys / layout)
    finally:
        path.write_text(json.dumps(config))
    assert f'{path}: {key} is ' in str(caught.value)
    assert 'expected ' in str(caught.value)


def test_a_template_that_does_not_exist_is_refused_at_load(toys):
    path = toys / 'own' / 'config.json'
    config = read_json(path)
    try:
        path.write_text(json.dumps({**config, 'template': 'vicuna'}))
        with pytest.raises(SettingsError, match="no template 'vicuna': use one of llava_v1"):
            load_backend(str(toys / 'own'), LoadOptions(device='cpu'))
    finally:
        path.write_text(json.dumps(config))


def test_the_reader_of_values_accepts_what_it_should(tmp_path):
    path = tmp_path / 'a.json'
    path.write_bytes(b'\xef\xbb\xbf{"a": 1, "b": 1.5, "c": true, "d": null, "e": {"f": "g"}}')
    fields = JsonFields.read(path)
    assert (fields.integer('a'), fields.number('a'), fields.number('b')) == (1, 1, 1.5)
    assert fields.flag('c') is True
    assert fields.text('d', 'default') == fields.text('z', 'default') == 'default'
    assert fields.object('e').text('f') == 'g'
    with pytest.raises(CheckpointError, match=r'a\.json: e\.h is missing; expected a text'):
        fields.object('e').text('h')
    with pytest.raises(CheckpointError, match='d is None; expected a text'):
        fields.text('d')
    assert isinstance(path, Path)
