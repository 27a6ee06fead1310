# SPDX-License-Identifier: Apache-2.0
"""A served model behind a link: name, version and weights are of one folder, whatever it says."""

import os
import shutil
from pathlib import Path

import pytest
import toy_served_backend
from toy_served_backend import write_model

from lisa_ros.errors import CheckpointError
from lisa_ros.model.checksums import file_checksums, folder_checksum, local_name, write_lock
from lisa_ros.model.registry import resolve_bundled_model
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
    assert [Path(name).name for name in loaded] == ['current', 'current']
    assert loaded[0] == str(link) != loaded[1]
    assert Path(loaded[1]).resolve().name == 'v1'  # for as long as this process lives


class SupervisedToy(toy_served_backend.ToyBackend):
    """A model that must be closed, such as one in a process of its own."""

    health = memory = gpu_memory = None
    interrupt = lambda *_: None  # noqa: E731

    def close(self):
        self.is_closed = True


def test_a_model_whose_link_was_moved_meanwhile_is_closed_before_the_next_is_loaded(link):
    loaded, closed = [], []

    def load(name, options):
        closed.append([model.is_closed for model in loaded])
        loaded.append(SupervisedToy({'delay': 0, 'sign': 1}, Path(name)))
        loaded[-1].is_closed = False
        move(link, 'v2')
        return loaded[-1]

    register_backend('toy', load)
    assert load_located(f'toy:{link}', locate(f'toy:{link}').folder, LoadOptions()) is loaded[1]
    assert closed == [[], [True]]
    assert not loaded[1].is_closed


def test_a_locked_model_is_found_in_its_lock_file_after_the_link_was_moved(tmp_path):
    for name in ('v1', 'v2'):
        shutil.copytree(resolve_bundled_model('lisa-tabletop'), tmp_path / name)
    link, lock = tmp_path / 'current', tmp_path / 'lock.json'
    link.symlink_to('v1')
    write_lock(lock, local_name(link), None, file_checksums(link))
    options = LoadOptions(device='cpu', threads=1, lock=lock)
    first = locate(str(link))
    (tmp_path / 'v2/more.json').write_text('{}')
    move(link, 'v2')
    load_located(str(link), first.folder, options)
    with pytest.raises(CheckpointError, match=r'more\.json not in the lock file'):
        load_located(str(link), locate(str(link)).folder, options)


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
