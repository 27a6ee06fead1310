# SPDX-License-Identifier: Apache-2.0
"""Hostile model folders: each a clear error within 10 s and 1 GB above the honest size."""

import re
import shutil
import time
from pathlib import Path

import pytest
from golden import backend
from hostile_folders import OWN, RELEASED, make_released

from lisa_ros.errors import CheckpointError
from lisa_ros.model import checkpoint, export

STATUS = Path('/proc/self/status')


def memory(field):
    """Return VmHWM (highest) or VmRSS (present) of this process [bytes]."""
    return int(re.search(rf'{field}:\s+(\d+)', STATUS.read_text())[1]) * 1024


@pytest.fixture(scope='module')
def toy_folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp('toys')
    lisa = backend(256)
    export.save(lisa.model, lisa.tokenizer, lisa.clip_preprocessing, folder / 'own')
    return {'released': make_released(folder / 'released'), 'own': folder / 'own'}


@pytest.mark.parametrize('layout', ['released', 'own'])
def test_the_toys_load(layout, toy_folders):
    checkpoint.load(toy_folders[layout])


CASES = [('released', name) for name in RELEASED] + [('own', name) for name in OWN]


@pytest.mark.parametrize(('layout', 'name'), CASES, ids=[': '.join(case) for case in CASES])
def test_a_hostile_folder_is_a_clear_error(layout, name, toy_folders, tmp_path, monkeypatch):
    change, pattern = {'released': RELEASED, 'own': OWN}[layout][name]
    folder = shutil.copytree(toy_folders[layout], tmp_path / 'model')
    monkeypatch.chdir(tmp_path)
    change(folder)
    Path('/proc/self/clear_refs').write_text('5')  # resets VmHWM
    before, start = memory('VmRSS'), time.process_time()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder)
    assert time.process_time() - start < 10
    assert memory('VmHWM') - before < 10**9
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert len(message) < 1000
    assert '\n' not in message
    assert 'cannot be loaded as a LISA' not in message  # the last resort names no cause
    assert not (tmp_path / 'ran').exists()
