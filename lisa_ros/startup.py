# SPDX-License-Identifier: Apache-2.0
"""Start the executables: handle signals first, import the program then.

Importing a node takes seconds. A signal in this time must end the process as later, so that the
executables call this module, which imports nothing but the standard library. env blocks the
signals for the time before (see CMakeLists.txt).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lisa_ros import stop_signals

_ROS_PACKAGES = ('rclpy', 'lisa_ros.msg', 'lisa_ros.action')  # and all that end in _msgs
_INTERRUPTED = 130  # exit status of the shell for a program that SIGINT ended


def run_node(module: str) -> NoReturn:
    """Run `main()` of a node's module; every stop signal ends the process with status 0."""
    stop_signals.install()
    name = _name_process()
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        if not _is_ros_package(error.name or ''):
            raise
        sys.exit(
            f'{name}: {sys.executable} finds no {error.name}: source the setup.bash of ROS 2 and '
            'of the workspace, and build the package for this Python'
        )
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    stop_signals.leave(status)


def run_command_line(*command: str) -> NoReturn:
    """Run `lisa-ros`; Ctrl-C ends it with one line and status 130.

    SIGTERM and SIGHUP end it as an exit does, so that it stops what it has started.

    Args:
        command: arguments before those of the process.
    """
    signal.signal(signal.SIGINT, _exit_interrupted)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # SIGHUP under nohup
            signal.signal(number, _exit_terminated)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals.STOP_SIGNALS)
    try:
        from lisa_ros import cli
    except ImportError as error:
        _exit_without_packages(error, [*command, *sys.argv[1:]])
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = _repeat_lost_interrupt
    try:
        status = cli.main([*command, *sys.argv[1:]])
    except (Exception, KeyboardInterrupt):
        if not interrupts:
            raise
        _exit_interrupted()  # a library made an ImportError of it, or Ctrl-C came twice
    stop_signals.ignore()
    sys.exit(status)


def _exit_without_packages(error: ImportError, arguments: list[str]) -> NoReturn:
    """Run the doctor, which needs no package, if it is asked for; else name it."""
    if arguments[:1] == ['doctor']:
        from lisa_ros.doctor.__main__ import main

        sys.exit(main(arguments[1:]))
    text = ' '.join(str(error).split())
    print(f'lisa-ros: {text}; lisa-ros doctor checks all packages', file=sys.stderr)
    sys.exit(1)


def _exit_interrupted(*_: object) -> NoReturn:
    """Report Ctrl-C as `cli.main` does, and end the process now."""
    os.write(2, b'lisa-ros: interrupted\n')
    os._exit(_INTERRUPTED)


def _exit_terminated(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _repeat_lost_interrupt(unraisable: sys.UnraisableHookArgs) -> None:
    """Raise KeyboardInterrupt again if it came in a destructor, where Python drops it."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    else:
        sys.__unraisablehook__(unraisable)


def _name_process() -> str:
    """Give the process the name of its executable, for `killall` and `top`; return it.

    The name is lost when env, which starts the executable, starts Python.
    """
    name = Path(sys.argv[0]).name
    with contextlib.suppress(OSError):
        Path('/proc/self/comm').write_text(name, encoding='utf-8')
    return name


def _is_ros_package(module: str) -> bool:
    return module in _ROS_PACKAGES or module.split('.')[0].endswith('_msgs')
