# SPDX-License-Identifier: Apache-2.0
"""The command that installs optional packages fits how lisa_ros was installed."""

import pytest

from lisa_ros import optional_packages
from lisa_ros.optional_packages import install_command


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
