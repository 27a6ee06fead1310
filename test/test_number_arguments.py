# SPDX-License-Identifier: Apache-2.0
"""Numbers on the command line: NaN, infinity and values out of range are refused by name."""

import argparse

import pytest

from lisa_ros import number_arguments
from lisa_ros.cli import main as lisa_ros
from lisa_ros.doctor.__main__ import main as doctor

REFUSED = {
    'positive_int': ('0', '-1', '1.5', 'nan', '', '²'),
    'non_negative_int': ('-1', '1.5', 'inf'),
    'positive_float': ('0', '-1', 'nan', 'inf', 'fast'),
    'non_negative_float': ('-0.1', 'nan', 'inf', ''),
    'fraction': ('-0.1', '1.1', 'nan'),
    'fraction_below_one': ('1', '-0.1', 'nan'),
}
ACCEPTED = {
    'positive_int': {'1': 1, '20': 20},
    'non_negative_int': {'0': 0},
    'positive_float': {'0.5': 0.5, '1e3': 1000.0},
    'non_negative_float': {'0': 0.0},
    'fraction': {'0': 0.0, '1': 1.0},
    'fraction_below_one': {'0': 0.0, '0.999': 0.999},
}


@pytest.mark.parametrize(('kind', 'text'), [(k, t) for k, texts in REFUSED.items() for t in texts])
def test_a_number_out_of_range_is_refused(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a"):
        getattr(number_arguments, kind)(text)


@pytest.mark.parametrize('kind', ACCEPTED)
def test_a_number_in_range_is_its_value(kind):
    parse = getattr(number_arguments, kind)
    assert {text: parse(text) for text in ACCEPTED[kind]} == ACCEPTED[kind]


@pytest.mark.parametrize(
    ('main', 'arguments'),
    [
        (doctor, ['--timeout']),
        (lisa_ros, ['doctor', '--timeout']),
        (lisa_ros, ['export', '--out', 'out', '--bag', 'bag', '--find', 'mug', '--at']),
    ],
    ids=['doctor', 'lisa-ros doctor', 'lisa-ros export'],
)
@pytest.mark.parametrize('text', ['nan', '-1'])
def test_a_command_refuses_it_before_it_does_anything(main, arguments, text, capsys):
    with pytest.raises(SystemExit) as error:
        main([*arguments, text])
    assert error.value.code == 2
    assert f"argument {arguments[-1]}: '{text}' is not a number" in capsys.readouterr().err


@pytest.mark.ros
@pytest.mark.parametrize('text', ['nan', '0'])
def test_a_program_of_ros_refuses_it_too(text, capsys):
    from lisa_ros.ros import bag_player, demo

    for main, arguments in ((bag_player.main, ['bag']), (demo.main, [])):
        with pytest.raises(SystemExit) as error:
            main([*arguments, '--rate', text])
        assert error.value.code == 2
        assert f"argument --rate: '{text}' is not a number above 0" in capsys.readouterr().err
