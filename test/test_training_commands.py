# SPDX-License-Identifier: Apache-2.0
"""The flags of `lisa-ros train` and `lisa-ros finetune`."""

import argparse
import re
from dataclasses import fields

import pytest

from lisa_ros import cli
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
            default = getattr(part, action.dest)
            if action.metavar in ('N', 'X'):
                shown = re.search(r'\(default: (.+)\)$', action.help)[1]
                assert shown == ('none' if default is None else str(default)), action.dest
                numbers += 1
    assert numbers > 10


@pytest.mark.parametrize(('command', 'name'), [(train, 'train'), (finetune, 'finetune')])
def test_every_flag_has_a_help_text(command, name):
    parser = command_parser(command, name)
    assert all(len(action.help or '') >= 10 for action in parser._actions)


# ---- numbers

FINETUNE = ['finetune', '--model', 'm', '--data', 'd', '--out', 'o']
TRAIN = ['train', '--scenes', 's', '--out', 'o']


@pytest.mark.parametrize(
    ('command', 'flag', 'refused', 'accepted'),
    [
        (FINETUNE, '--steps', ['0', '-3', '1.5'], ['1']),
        (FINETUNE, '--accumulate', ['0'], ['1']),
        (FINETUNE, '--validate-every', ['0'], ['1']),
        (FINETUNE, '--save-every', ['0'], ['1']),
        (FINETUNE, '--batch-size', ['0'], ['1']),
        (FINETUNE, '--queries-per-image', ['0'], ['1']),
        (FINETUNE, '--rank', ['0'], ['1']),
        (FINETUNE, '--alpha', ['0'], ['1']),
        (FINETUNE, '--patience', ['0'], ['1']),
        (FINETUNE, '--seed', ['-1'], ['0']),
        (FINETUNE, '--dropout', ['1.5', '1', 'nan'], ['0', '0.5']),
        (FINETUNE, '--words-only', ['7', '-0.1', 'nan'], ['0', '1']),
        (FINETUNE, '--rates', ['nan', '-1', 'inf'], ['0', '9']),
        (FINETUNE, '--learning-rate', ['0', 'nan', 'inf'], ['1e-12']),
        (TRAIN, '--ema-decay', ['1', '-1'], ['0', '0.99']),
        (TRAIN, '--decay-fraction', ['1.1'], ['0', '1']),
        (TRAIN, '--weight-decay', ['-1', 'nan'], ['0']),
        (TRAIN, '--warmup-steps', ['-1'], ['0']),
        (TRAIN, '--workers', ['-1'], ['0']),
        (TRAIN, '--lora-rank', ['-1'], ['0']),
        (TRAIN, '--vision-warmup-steps', ['-1'], ['0']),
        (TRAIN, '--name-noise-rate', ['2'], ['0', '1']),
        (TRAIN, '--views-per-scene', ['0'], ['1']),
        (TRAIN, '--threads', ['0'], ['1']),
    ],
)
def test_numbers_out_of_range_are_refused(command, flag, refused, accepted, capsys):
    name = command[0]
    parser = command_parser({'finetune': finetune, 'train': train}[name], name)
    for value in refused:
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([*command[1:], flag, value])
        assert ended.value.code == 2
        assert f'argument {flag}: {value!r} is not' in capsys.readouterr().err
    for value in accepted:
        options = parser.parse_args([*command[1:], flag, value])
        given = getattr(options, flag[2:].replace('-', '_'))
        assert given in (float(value), [float(value)])


# ---- options without an effect


@pytest.mark.parametrize(
    ('options', 'problem'),
    [
        (['--patience', '1'], 'name it with --monitor'),
        (['--position-codes', '--init-from', 'm', '--device', 'cuda'], 'without --device'),
        (
            ['--position-codes', '--init-from', 'm', '--batch-size', '4', '--lora-rank', '0'],
            'without --batch-size, --lora-rank',
        ),
        (
            ['--position-codes', '--init-from', 'm', '--rebuild-tokenizer'],
            'without --rebuild-tokenizer',
        ),
    ],
)
def test_options_without_an_effect_are_refused(options, problem, capsys):
    assert cli.main([*TRAIN, *options]) == 1
    assert problem in capsys.readouterr().err


def test_options_of_the_loop_are_those_of_the_position_codes_too(tmp_path, capsys):
    options = ['--position-codes', '--init-from', str(tmp_path), '--steps', '9', '--device', 'cpu']
    options += ['--patience', '2', '--monitor', 'val_position_error', '--no-bf16']
    assert cli.main(['train', '--scenes', str(tmp_path), '--out', str(tmp_path), *options]) == 1
    assert 'leave it out' not in (error := capsys.readouterr().err)
    assert str(tmp_path) in error  # there are no scenes
