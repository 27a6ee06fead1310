# SPDX-License-Identifier: Apache-2.0
"""Settings: defaults and ranges are consistent, and the YAML files are up to date."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from lisa_ros.errors import SettingsError
from lisa_ros.model import quantization
from lisa_ros.perception import prompts
from lisa_ros.settings import Settings
from lisa_ros.settings_schema import as_yaml, parameter, parameter_info
from lisa_ros.tracking import video_model
from lisa_ros.vlm.profiles import PROFILES
from lisa_ros.voice.settings import VoiceSettings

CONFIG = Path(__file__).parents[1] / 'config'
NODES = [(Settings, 'lisa_node', 'lisa.yaml'), (VoiceSettings, 'voice_node', 'voice.yaml')]
FIELDS = [field for settings_class, *_ in NODES for field in dataclasses.fields(settings_class)]


@pytest.mark.parametrize('settings_class', [Settings, VoiceSettings])
def test_the_defaults_are_valid(settings_class):
    settings_class()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'precision': 'fp8'}, r"precision is 'fp8'; expected one of 'auto', 'fp32'"),
        ({'max_new_tokens': 0}, r'max_new_tokens is 0; expected 1 to 2048'),
        (
            {'confidence_threshold': float('nan')},
            r'confidence_threshold is nan; expected 0.0 to 1',
        ),
        ({'threads': True}, r'threads is True; expected an int'),
        ({'model': 7}, r'model is 7; expected a str'),
        ({'cameras': 5}, r'cameras is 5; expected distinct names'),
        ({'cameras': ['a', 'a']}, r'expected distinct names'),
        ({'cameras': ['front camera']}, r'distinct names of letters, digits and _, starting with'),
        ({'cameras': ['tracked']}, r"starting with a letter; 'tracked' is reserved"),
    ],
)
def test_an_invalid_value_is_named_with_what_was_expected(change, message):
    with pytest.raises(SettingsError, match=message):
        Settings(**change)


def test_a_range_has_both_ends():
    for end in ({'minimum': 0}, {'maximum': 1}):
        with pytest.raises(ValueError, match='give both'):
            parameter(0, 'Number of frames that are kept [frames]', **end)


def test_the_choices_are_what_the_package_can_load():
    """They are written out in settings.py, which must not import torch."""
    choices = {field.name: parameter_info(field).choices for field in FIELDS}
    assert set(choices['template']) == {'', *prompts.TEMPLATES, *PROFILES}
    assert choices['precision'] == ('auto', *quantization.PRECISIONS)
    assert set(choices['tracker']) == {'flow', 'off', *video_model.MODELS}


@pytest.mark.parametrize(
    ('name', 'text', 'expected'),
    [
        ('tracker', 'off', 'off'),
        ('tracker', 'No', 'off'),
        ('tracker', 'false', 'off'),
        ('refine', 'on', 'on'),
        ('refine', 'off', 'off'),
        ('refine', 'yes', 'on'),
        ('refine', '"true"', 'on'),
        ('requery', 'off', 'never'),
        ('cameras', '[]', ()),
        ('cameras', '', ()),
        ('cameras', "['']", ()),
        ('cameras', 'front', ('front',)),
        ('cameras', '[front, wrist]', ('front', 'wrist')),
        ('depth_tolerance', '1', 1.0),
        ('depth_tolerance', "'0.5'", 0.5),
        ('threads', '2.0', 2),
        ('threads', "'3'", 3),
        ('autostart', "'false'", False),
        ('autostart', '0', False),
        ('image_is_rectified', '1', True),
        ('image_is_rectified', '"Yes"', True),
        ('tracker_model', "'~'", ''),  # as rcl reads an unquoted ~
        ('target_frame', "'null'", ''),
        ('model', "'7'", '7'),
    ],
)
def test_a_value_of_another_type_whose_meaning_is_clear_is_converted(name, text, expected):
    value = getattr(Settings(**{name: yaml.safe_load(text)}), name)
    assert (type(value), value) == (type(expected), expected)


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('tracker', 'on', "tracker is True; expected one of 'flow', 'sam2', 'edgetam', 'off'"),
        ('template', 'off', 'put it in quotes'),
        ('camera', 'no', 'YAML reads on, off, yes, no, y and n as booleans: put it in quotes'),
        ('camera', '1', r"camera is 1; expected a str; put it in quotes: '1'"),
        ('device', '0', r"put it in quotes: '0'"),
        ('threads', '1.5', 'threads is 1.5; expected an int'),
        ('threads', 'many', "threads is 'many'; expected an int"),
        ('depth_tolerance', 'yes', 'depth_tolerance is True; expected a float'),
        ('depth_tolerance', "'nan'", 'depth_tolerance is nan; expected 0.0 to 10.0'),
        ('autostart', '2', 'autostart is 2; expected a bool'),
        ('autostart', 'maybe', "autostart is 'maybe'; expected a bool"),
        ('cameras', '[1, 2]', 'put names such as on and 1 in quotes'),
        ('cameras', '[on, off]', 'put names such as on and 1 in quotes'),
        ('cameras', "'front, wrist'", 'expected distinct '),
        ('model', '[]', r'model is \[\]; expected a str'),
    ],
)
def test_a_value_that_could_mean_several_things_is_refused(name, text, message):
    with pytest.raises(SettingsError, match=message):
        Settings(**{name: yaml.safe_load(text)})


@pytest.mark.parametrize('field', FIELDS, ids=lambda field: field.name)
def test_every_parameter_has_a_description_and_numbers_a_range(field):
    info = parameter_info(field)
    assert len(info.description) > 15
    if type(field.default) in (int, float):
        assert info.minimum < info.maximum
        assert '[' in info.description or '0:' in info.description


@pytest.mark.parametrize(('settings_class', 'node', 'file'), NODES)
def test_the_yaml_file_is_up_to_date(settings_class, node, file):
    assert (CONFIG / file).read_text() == as_yaml(settings_class, node), (
        'python -m lisa_ros.settings config'
    )


@pytest.mark.parametrize(('settings_class', 'node', 'file'), NODES)
def test_the_yaml_file_has_every_parameter_with_its_default(settings_class, node, file):
    parameters = yaml.safe_load((CONFIG / file).read_text())['/**']['ros__parameters']
    defaults = {field.name: field.default for field in dataclasses.fields(settings_class)}
    empty_lists = {'cameras': ['']} if settings_class is Settings else {}  # in ROS
    assert parameters == {**defaults, **empty_lists}
    assert settings_class(**parameters) == settings_class()
