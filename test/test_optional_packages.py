# SPDX-License-Identifier: Apache-2.0
"""What to install: it fits how lisa_ros was installed, and a broken package is named, too."""

import importlib
import subprocess
import sys

import pytest

from lisa_ros import optional_packages
from lisa_ros.errors import SettingsError
from lisa_ros.optional_packages import install_command, local_model_packages


@pytest.fixture
def no_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(optional_packages, 'SOURCE_ROOT', tmp_path / 'site-packages')
    monkeypatch.setenv('AMENT_PREFIX_PATH', '')


def test_in_a_workspace_it_names_the_installed_file(no_checkout, monkeypatch, tmp_path):
    file = tmp_path / 'install/share/lisa_ros/config/requirements/voice.txt'
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'/opt/ros/kilted:{tmp_path}/install')
    assert install_command('voice') == f'pip install -r {file}'


def test_in_a_checkout_it_names_the_file_of_the_checkout(monkeypatch):
    monkeypatch.delenv('AMENT_PREFIX_PATH', raising=False)
    command = install_command('train')
    assert command.startswith('pip install -r /')
    assert command.endswith('/config/requirements/train.txt')


def test_of_an_installed_wheel_it_names_the_extra(no_checkout):
    assert install_command('ray') == "pip install 'lisa_ros[ray]'"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that writes the package `broken`, whose import runs some code."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code):
        sys.modules.pop('broken', None)
        (tmp_path / 'broken.py').write_text(f'{code}\n')
        importlib.invalidate_caches()

    return write


@pytest.mark.parametrize(
    ('code', 'cure'),
    [
        ("RuntimeError('operator torchvision::nms does not exist')", 'the torchvision that fits'),
        (
            "ImportError('libcusparseLt.so.0: cannot open shared object file')",
            'install this library',
        ),
        (
            "OSError('/v/libgomp-d22c30c5.so.1: cannot allocate memory in static TLS block')",
            'LD_PRELOAD',
        ),
        ("ValueError('numpy.dtype size changed')", 'the version that fits'),
        ("ModuleNotFoundError('No module named regex', name='regex')", 'the version that fits'),
        (
            "ImportError('Could not import module') from RuntimeError('torchvision::nms')",
            'the torchvision that fits',
        ),
    ],
)
def test_a_package_that_cannot_be_imported_is_named_with_a_cure(code, cure, package):
    package(f'raise {code}')
    with pytest.raises(SettingsError) as raised, local_model_packages('the model'):
        import broken  # noqa: F401
    text = str(raised.value)
    assert text.startswith(f'the model needs a package that {sys.executable} cannot import (')
    assert cure in text.partition('): ')[2]


@pytest.mark.parametrize(
    'error',
    [
        OSError('the weights are not there'),
        RuntimeError('operator torchvision::nms does not exist'),  # no import: a bug
        ModuleNotFoundError('No module named lisa_ros.other', name='lisa_ros.other'),
    ],
)
def test_other_errors_keep_their_type(error):
    with pytest.raises(type(error)) as raised, local_model_packages('the model'):
        raise error
    assert raised.value is error


def test_what_is_not_installed_is_named_with_the_python(monkeypatch, tmp_path):
    def fails():
        with pytest.raises(SettingsError) as raised, local_model_packages('the model'):
            raise ModuleNotFoundError('No module named torch', name='torch')
        return str(raised.value)

    monkeypatch.delenv('VIRTUAL_ENV', raising=False)
    assert fails().startswith(
        f'the model needs torch, which is not installed for {sys.executable}: pip install'
    )
    assert 'colcon' not in fails()
    monkeypatch.setenv('VIRTUAL_ENV', sys.prefix)
    assert 'colcon' not in fails()
    monkeypatch.setenv('VIRTUAL_ENV', str(tmp_path))  # active, but the package is of another
    assert f'packages of {tmp_path}, build again in it with `colcon build --cmake' in fails()


def test_a_command_reports_a_broken_package_in_one_line(tmp_path):
    (tmp_path / 'broken.py').write_text("raise RuntimeError('torchvision::nms does not exist')\n")
    code = (
        'from lisa_ros import cli, startup\n'
        'cli.main = lambda _: __import__({!r})\n'
        'startup.run_command_line()\n'
    )
    broken, other = (
        subprocess.run(
            [sys.executable, '-c', f'import sys; sys.path.append({str(tmp_path)!r})\n{program}'],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        for program in (code.format('broken'), code.replace('__import__({!r})', '1 / 0'))
    )
    assert broken.returncode == 1
    assert broken.stderr.startswith('lisa-ros: the command needs a package that ')
    assert broken.stderr.count('\n') == 1
    assert 'ZeroDivisionError' in other.stderr  # a bug keeps its traceback
