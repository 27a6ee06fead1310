# SPDX-License-Identifier: Apache-2.0
"""A served model behind a link: name, version and weights are of one folder, whatever it says."""

import os

import pytest
import toy_served_backend
from toy_served_backend import write_model

from lisa_ros.errors import CheckpointError
from lisa_ros.model.checksums import file_checksums, folder_checksum
from lisa_ros.perception.backend import LoadOptions
from lisa_ros.perception.registry import register_backend
from lisa_ros.serving.model_location import load_located, locate


@pytest.fixture
def link(tmp_path):
    """A link to the folder v1, beside v2; their weights differ in the sign."""
    register_backend('toy', toy_served_backend.load)
    for name, sign in (('v1', 1), ('v2', -1)):
        (tmp_path / name).mkdir()
        write_model(tmp_path / name, sign=sign)
    (tmp_path / 'current').symlink_to('v1')
    return tmp_path / 'current'


def move(link, name):
    link.unlink()
    link.symlink_to(name)


def sign_of(link, location):
    return load_located(f'toy:{link}', location.folder, LoadOptions()).sign


def test_a_link_has_the_name_and_the_version_of_its_folder(link):
    location = locate(f'toy:{link}')
    assert location.served.model == 'toy:v1'
    assert location.served.version == folder_checksum(file_checksums(link.parent / 'v1'))
    assert location.folder == os.path.realpath(link.parent / 'v1')


def test_a_replica_that_starts_after_the_link_was_moved_loads_the_planned_folder(link, caplog):
    first = locate(f'toy:{link}')
    assert sign_of(link, first) == 1
    assert not caplog.messages
    move(link, 'v2')
    assert sign_of(link, first) == 1
    assert 'until an update' in caplog.text
    second = locate(f'toy:{link}')
    assert second.served.model == 'toy:v2'
    assert sign_of(link, second) == -1


def test_a_link_that_is_moved_while_its_model_is_loaded(link):
    loaded = []

    def load(name, options):
        loaded.append(name)
        move(link, 'v2')
        return toy_served_backend.load(name, options)

    register_backend('toy', load)
    assert sign_of(link, locate(f'toy:{link}')) == 1
    assert loaded == [str(link), os.path.realpath(link.parent / 'v1')]


def test_a_folder_of_another_machine_and_a_link_that_stays_leave_the_name(link):
    """A lock file and a profile know the model by its name, which is that of the link."""
    loaded = []

    def load(name, options):
        loaded.append(name)
        return toy_served_backend.load(name, options)

    register_backend('toy', load)
    for folder in ('', '/no/such/folder', locate(f'toy:{link}').folder):
        load_located(f'toy:{link}', folder, LoadOptions())
    assert loaded == [str(link)] * 3


def test_models_without_a_folder_of_the_user(tmp_path, monkeypatch):
    assert not locate('someone/on-the-hub').served.version
    bundled = locate('lisa-tabletop')
    (tmp_path / 'lisa-tabletop').mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate('lisa-tabletop') == bundled  # a folder of this name is not what is loaded
    assert (bundled.served.model, bundled.folder) == ('lisa-tabletop', '')
    assert len(bundled.served.version) == 64


def test_a_file_that_can_be_opened_and_not_read_is_an_error_of_the_package(link):
    unreadable = link / 'weights.bin'
    unreadable.symlink_to('/proc/self/mem')
    with pytest.raises(OSError, match='error'), unreadable.open('rb') as file:
        file.read(1)
    with pytest.raises(CheckpointError, match=r'weights\.bin: '):
        locate(f'toy:{link}')
