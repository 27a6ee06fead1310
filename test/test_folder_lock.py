# SPDX-License-Identifier: Apache-2.0
"""Two runs do not use one folder at once: the second one names the first, and changes nothing."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest
from test_trainer import CONFIG, LineTask

from lisa_ros.errors import OutputError
from lisa_ros.evaluation.bag_job import BagJob, BatchPlan
from lisa_ros.evaluation.batch import evaluate_bags
from lisa_ros.files.folder_lock import hold_folder
from lisa_ros.files.output import check_output_folder
from lisa_ros.training.trainer import Trainer

HOLDER = """
import os, sys
from pathlib import Path
from lisa_ros.files.folder_lock import hold_folder
with hold_folder(Path(sys.argv[1])):
    child = os.fork()
    if not child:
        sys.stdin.read()  # outlives its parent
        os._exit(0)
    print(child, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder, with a child."""
    command = [sys.executable, '-c', HOLDER, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        yield process
        process.stdin.close()


def test_a_folder_of_another_run_is_refused_until_its_process_is_killed(holder, tmp_path):
    (tmp_path / '.part-a-worker').mkdir()
    expected = f'a run of process {holder.pid} on .* uses it; wait .* another --out'
    with pytest.raises(OutputError, match=expected):
        Trainer(tmp_path, CONFIG, LineTask()).train()
    with pytest.raises(OutputError, match=expected):
        evaluate_bags([BagJob('a', tmp_path / 'a.mcap')], BatchPlan('m', ()), tmp_path)
    assert (tmp_path / '.part-a-worker').is_dir()
    with pytest.raises(OutputError, match=expected):
        check_output_folder(tmp_path)  # which commands call before they load a model
    assert not (tmp_path / 'last.pt').exists()
    holder.kill()
    holder.wait()  # its child still runs
    Trainer(tmp_path, CONFIG, LineTask()).train(until=1)
    assert (tmp_path / 'last.pt').is_file()


def test_a_run_that_loaded_an_older_state_does_not_replace_a_newer_one(tmp_path):
    Trainer(tmp_path, CONFIG, LineTask()).train(until=2)
    slow = Trainer(tmp_path, CONFIG, LineTask())
    Trainer(tmp_path, CONFIG, LineTask()).train(until=4)
    with pytest.raises(OutputError, match='another run has trained here'):
        slow.train(until=3)
    assert Trainer(tmp_path, CONFIG, LineTask()).step == 4


def test_a_folder_is_free_again_after_a_run_and_after_its_failure(tmp_path):
    with pytest.raises(ValueError, match='broken'), hold_folder(tmp_path):
        with pytest.raises(OutputError, match=f'process {os.getpid()} '), hold_folder(tmp_path):
            pass
        raise ValueError('broken')
    with hold_folder(tmp_path), hold_folder(tmp_path.parent):
        check_output_folder(tmp_path)  # of the process's own run, which keeps the lock
        command = [sys.executable, '-c', HOLDER, tmp_path]
        second = subprocess.run(command, input=b'', capture_output=True, check=False)
        assert f'process {os.getpid()} '.encode() in second.stderr


def test_a_second_fine_tuning_is_refused_before_it_loads_a_model(holder, tmp_path):
    (tmp_path / 'skipped.txt').write_text('of the first run\n')
    options = ('--model', 'missing', '--data', 'missing', '--skip-broken')
    command = [sys.executable, '-m', 'lisa_ros', 'finetune', *options, '--out', tmp_path]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode
    assert f'a run of process {holder.pid} ' in second.stderr
    assert (tmp_path / 'skipped.txt').read_text() == 'of the first run\n'


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(number, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'lockf', fail)
    with hold_folder(tmp_path):
        assert 'cannot be locked' in capsys.readouterr().err


def test_a_lock_file_that_cannot_be_opened_is_a_warning(tmp_path, capsys):
    (tmp_path / '.lock').mkdir()
    with hold_folder(tmp_path):
        assert 'cannot be locked' in capsys.readouterr().err
    (tmp_path / '.lock').rmdir()
    (tmp_path / '.lock').symlink_to('elsewhere')
    with hold_folder(tmp_path):
        assert not (tmp_path / 'elsewhere').exists()
