# SPDX-License-Identifier: Apache-2.0
"""Initialize rclpy and explain its errors: what came, what was expected, and the cure.

rclpy reports a wrong argument by an exception with places in its C sources. `initialize` raises
a SettingsError of one line instead.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import rclpy
import yaml
from rclpy.logging import LoggingSeverity, get_logger_level, set_logger_level
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from lisa_ros.error_text import one_line
from lisa_ros.errors import SettingsError

_C_SOURCE = re.compile(r',? at \S+\.(?:c|cpp|h|hpp):\d+')
_LOG_FOLDER = re.compile(r'get logging directory|create log directory|opening file \S+\.log for')
_LARGEST_DOMAIN = 232  # of DDS; its port numbers do not allow more
_NODE_NAME = 'letters, digits and _, not beginning with a digit'
_YAML_FORM = 'expected NODE: ros__parameters: NAME: VALUE with /** for every node'

# The kinds of argument as rcl's messages name them: pattern with the argument, what is expected.
_ARGUMENTS = (
    (
        r"remap rule: '(?:-r|--remap) __ns:=(.*)'\. Error",
        f'is not a namespace; expected names of {_NODE_NAME}, separated by /, such as /robot1',
    ),
    (
        r"remap rule: '(?:-r|--remap) __(?:node|name):=(.*)'\. Error",
        f'is not a node name; expected {_NODE_NAME}',
    ),
    (
        r"remap rule: '(?:-r|--remap) (.*)'\. Error",
        'is not a remapping; expected FROM:=TO with names of topics, such as '
        'image:=/camera/color/image_raw',
    ),
    (
        r"log level: '--log-level (.*)'\. Error",
        'is not a log level; expected debug, info, warn, error or fatal, or LOGGER:=LEVEL',
    ),
    (
        r"parameter override rule: '(?:-p|--param) (.*)'\. Error",
        "is not a parameter; expected NAME:=VALUE in YAML, such as watch_rate:=5.0 or camera:=''",
    ),
)


def initialize(args: list[str] | None = None, may_have_others: bool = False) -> list[str]:
    """Initialize rclpy's default context, without its signal handlers.

    Args:
        args: command line with the program first; None: that of the process.
        may_have_others: the program has arguments of its own, beside those of ROS.

    Returns:
        The arguments that are not for ROS, without the program.

    Raises:
        SettingsError: an argument, a parameter file or an environment variable is wrong.
    """
    args = sys.argv if args is None else args
    _check_domain()
    try:
        with _quiet_rcl():
            rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        others = remove_ros_args(args=args)[1:]
    except Exception as error:  # rclpy has private types for its errors
        raise SettingsError(explained(str(error))) from error
    if others and not may_have_others:
        raise SettingsError(
            f'unknown argument {others[0]!r}; arguments of ROS follow --ros-args: --ros-args '
            '--params-file FILE -p NAME:=VALUE -r FROM:=TO'
        )
    return others


@contextlib.contextmanager
def _quiet_rcl() -> Iterator[None]:
    """Keep rcl from logging what it also raises."""
    set_logger_level('rcl', LoggingSeverity.FATAL)
    try:
        yield
    finally:
        if get_logger_level('rcl') == LoggingSeverity.FATAL:  # not set by --log-level
            set_logger_level('rcl', LoggingSeverity.UNSET)


def explained(message: str) -> str:
    """Return an error message of rclpy.init as one line with what was expected.

    Args:
        message: such as "failed to initialize rcl: Couldn't parse log level: '--log-level x'. ..."
    """
    message = one_line(_C_SOURCE.sub('', message), 1000)
    file = re.search(r"params file: '--params-file (.*)'\. Error: (.*)", message)
    if file:
        return _explained_file(Path(file[1]), file[2])
    for pattern, expectation in _ARGUMENTS:
        argument = re.search(pattern, message)
        if argument:
            return f'{argument[1]!r} {expectation}'
    missing = re.search(r'trailing (\S+) flag', message)
    if missing:
        return f'{missing[1]} is the last argument; expected its value after it'
    if re.fullmatch(r'\[.*\]', message):  # UnknownROSArgsError
        return (
            f'unknown arguments of ROS {message}; expected -p NAME:=VALUE, -r FROM:=TO, '
            '--params-file FILE or --log-level LEVEL; arguments of others follow --'
        )
    if _LOG_FOLDER.search(message):
        return (
            f'{message}: set ROS_LOG_DIR to a folder that this user may write to (a systemd '
            'service without User= has no HOME)'
        )
    return f'{message}; check the arguments after --ros-args and the variables ROS_* and RMW_*'


def _explained_file(path: Path, detail: str) -> str:
    """Return what is wrong with a parameter file; `detail`: rcl's words."""
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return f'{path}: no such parameter file in {Path.cwd()}; correct the path of --params-file'
    except OSError as error:
        return f'{path}: cannot be read ({error.strerror}); expected a YAML file'
    except UnicodeDecodeError as error:
        return f'{path}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8'
    except yaml.YAMLError as error:
        return f'{path}: not YAML: {one_line(error)}; correct this line'
    cure = _YAML_FORM
    if 'same type' in detail:
        cure = 'expected a list of values of one type: put texts in quotes, also on, off, yes, no'
    elif 'No value' in detail:
        cure = "expected a value: write '' for an empty text"
    elif not isinstance(content, dict):
        detail = f'the file contains {content!r}'[:200]
    return f'{path}: not a file of ROS parameters ({detail}); {cure}'


def _check_domain() -> None:
    """Check ROS_DOMAIN_ID: with some values the middleware ends the process.

    Raises:
        SettingsError: it is not a number, or too large.
    """
    domain = os.environ.get('ROS_DOMAIN_ID', '')
    if domain and not (domain.isdecimal() and int(domain) <= _LARGEST_DOMAIN):
        raise SettingsError(
            f'ROS_DOMAIN_ID is {domain!r}; expected 0 to {_LARGEST_DOMAIN}, better up to 101: '
            'export another number, or unset it for 0'
        )
