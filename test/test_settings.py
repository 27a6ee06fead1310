# SPDX-License-Identifier: Apache-2.0
"""Settings: defaults and ranges are consistent, and the YAML files are up to date."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from lisa_ros.errors import SettingsError
from lisa_ros.model import quantization
from lisa_ros.settings import Settings
from lisa_ros.settings_schema import as_yaml, parameter, parameter_info
from lisa_ros.tracking import video_model
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
    assert choices['precision'] == ('auto', *quantization.PRECISIONS)
    assert set(choices['tracker']) == {'flow', 'off', *video_model.MODELS}


def test_an_integer_is_accepted_for_a_float():
    assert Settings(depth_tolerance=1).depth_tolerance == 1


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
