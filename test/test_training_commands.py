# SPDX-License-Identifier: Apache-2.0
"""The flags of `lisa-ros train` and `lisa-ros finetune`."""

import argparse
import re
from dataclasses import fields

import pytest

from lisa_ros.commands import finetune, train
from lisa_ros.training.finetune.config import FinetuneConfig
from lisa_ros.training.tabletop.pretrain_config import PretrainConfig


def command_parser(command, name):
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    command.add(commands)
    return commands.choices[name]


@pytest.mark.parametrize(
    ('parser', 'config'),
    [
        (command_parser(train, 'train'), PretrainConfig()),
        (command_parser(finetune, 'finetune'), FinetuneConfig()),
    ],
)
def test_help_shows_the_defaults_of_the_configs(parser, config):
    numbers = 0
    for action in parser._actions:
        for part in (config, config.trainer):
            if action.dest not in {field.name for field in fields(part)}:
                continue
            assert action.default is None  # the config has the default
            if action.type in (int, float):
                shown = re.search(r'\(default: (.+)\)$', action.help)[1]
                default = getattr(part, action.dest)
                assert shown == ('none' if default is None else str(default)), action.dest
                numbers += 1
    assert numbers > 10


@pytest.mark.parametrize(('command', 'name'), [(train, 'train'), (finetune, 'finetune')])
def test_every_flag_has_a_help_text(command, name):
    parser = command_parser(command, name)
    assert all(len(action.help or '') >= 10 for action in parser._actions)
