# SPDX-License-Identifier: Apache-2.0
"""Start the executables: handle signals first, import the program then.

Importing a node takes seconds. A signal in this time must end the process as later, so that the
executables call this module, which imports nothing but the standard library. env blocks the
signals for the time before (see CMakeLists.txt).
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lisa_ros import garbage_collection, native_settings, stop_signals
from lisa_ros.error_text import one_line

_ROS_PACKAGES = (  # and all that end in _msgs
    *('rclpy', 'lisa_ros.msg', 'lisa_ros.srv', 'lisa_ros.action'),
)
_INTERRUPTED = 130  # exit status of the shell for a program that SIGINT ended
_IMPORT_PAUSE = 0.05  # after which a signal that came during an import is handled [s]
_IMPORT_PAUSES = 600  # after which the import is taken for hung


def run_node(module: str) -> NoReturn:
    """Run `main()` of a node's module; every stop signal ends the process with status 0."""
    open_closed_streams()
    native_settings.apply()  # before there are threads
    stop_signals.install()
    name = _name_process()
    try:
        with garbage_collection.paused():
            main = importlib.import_module(module).main
        garbage_collection.ignore_present_objects()
    except ModuleNotFoundError as error:
        if not _is_ros_package(error.name or ''):
            raise
        sys.exit(
            f'{name}: {sys.executable} finds no {error.name}: source the setup.bash of ROS 2 and '
            'of the workspace, and build the package for this Python'
        )
    main()  # ends the process


def run_command_line(*command: str) -> NoReturn:
    """Run `lisa-ros`; Ctrl-C ends it with one line and status 130.

    SIGTERM and SIGHUP end it as an exit does, so that it stops what it has started.

    Args:
        command: arguments before those of the process.
    """
    open_closed_streams()
    signal.signal(signal.SIGINT, _exit_interrupted)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # SIGHUP under nohup
            signal.signal(number, _exit_terminated)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals.STOP_SIGNALS)
    native_settings.apply()
    statuses: list[int] = []
    atexit.register(_end_without_teardown, statuses)  # the first to be registered is called last
    try:
        from lisa_ros import cli
    except (ImportError, OSError, RuntimeError) as error:  # of a package that is broken
        _exit_without_packages(error, [*command, *sys.argv[1:]])
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _is_postponed(number, frame):
            return
        interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = _repeat_lost_interrupt
    try:
        status = cli.main([*command, *sys.argv[1:]])
    except SystemExit as ended:  # such as by SIGTERM
        statuses.append(_exit_status(ended))
        raise
    except (Exception, KeyboardInterrupt) as error:
        if interrupts:
            _report_interrupt()  # a library may have made another exception of it
            status = _INTERRUPTED
        elif _is_broken_package(error):
            status = 1
        else:
            raise
    stop_signals.ignore()
    statuses.append(status)
    sys.exit(status)


def _exit_status(ended: SystemExit) -> int:
    """Return the exit status as Python chooses it; a text is printed, and is an error."""
    if ended.code is None:
        return 0
    return ended.code if isinstance(ended.code, int) else 1


def _end_without_teardown(statuses: list[int]) -> None:
    """End the process if it has used ROS, see `stop_signals.end`; `statuses`: none or its own."""
    if statuses and 'rclpy' in sys.modules:
        stop_signals.end(statuses[0])


def open_closed_streams() -> None:
    """Give a standard stream that is closed, such as by `>&-`, the null device.

    Else Python has None for it, and the next file or socket gets its number: native code would log
    into that.
    """
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number: this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, 'w' if number else 'r', closefd=False))  # noqa: SIM115


def _is_broken_package(error: BaseException) -> bool:
    """Return whether a command cannot import a package; then it is reported, in one line."""
    from lisa_ros.optional_packages import import_problem

    problem = import_problem('the command', error)
    if problem is not None:
        print(f'lisa-ros: {one_line(problem, 1500)}', file=sys.stderr)
    return problem is not None


def _exit_without_packages(error: Exception, arguments: list[str]) -> NoReturn:
    """Run the doctor, which needs no package, if it is asked for; else name it."""
    if arguments[:1] == ['doctor']:
        from lisa_ros.doctor.__main__ import main

        sys.exit(main(arguments[1:]))
    print(f'lisa-ros: {one_line(error)}; lisa-ros doctor checks all packages', file=sys.stderr)
    sys.exit(1)


def _exit_interrupted(*_: object) -> NoReturn:
    _report_interrupt()
    os._exit(_INTERRUPTED)


def _report_interrupt() -> None:
    stop_signals.ignore()  # else Ctrl-C that comes twice is reported twice
    os.write(2, b'lisa-ros: interrupted\n')


def _exit_terminated(number: int, frame: FrameType | None) -> None:
    if not _is_postponed(number, frame):
        sys.exit(128 + number)


def _is_postponed(number: int, frame: FrameType | None, pauses: int = 0) -> bool:
    """Handle a signal that comes during an import; return whether it is handled later.

    Then it may not raise: the native part of a module, such as that of PyTorch, aborts the process
    if a callback raises. So the process ends now if it has started nothing, else after the import.
    """
    if not _is_import(frame):
        return False
    if pauses == _IMPORT_PAUSES or not _has_children():
        _exit_interrupted() if number == signal.SIGINT else os._exit(128 + number)

    def handle(_: int, later: FrameType | None) -> None:
        if not _is_postponed(number, later, pauses + 1):
            signal.raise_signal(number)

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, _IMPORT_PAUSE)
    return True


def _has_children() -> bool:
    """Return whether this process has started others; true where the system does not tell."""
    try:
        tasks = list(Path('/proc/self/task').iterdir())
        # bytes: to decode text imports a codec, and the next signal comes during this import
        return any((task / 'children').read_bytes() for task in tasks) or not tasks
    except OSError:
        return True


def _is_import(frame: FrameType | None) -> bool:
    """Return whether a frame runs for an import statement."""
    while frame is not None:
        if frame.f_code.co_filename.startswith('<frozen importlib'):
            return True
        frame = frame.f_back
    return False


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
