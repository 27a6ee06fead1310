# SPDX-License-Identifier: Apache-2.0
"""A result that cannot be written is refused before the work, and nothing is changed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lisa_ros import cli
from lisa_ros.errors import OutputError, SettingsError
from lisa_ros.evaluation import calibration
from lisa_ros.evaluation.report import ensure_folder
from lisa_ros.files.output import check_output_file, check_output_folder

CONFIG = '{"model_type": "lisa_ros"}'


@pytest.fixture
def as_user(tmp_path):
    """Run the test as a user whose permissions count: root may write everywhere."""
    for folder in (tmp_path, *tmp_path.parents):
        if os.geteuid() == 0 and folder.stat().st_mode & 0o777 == 0o700:
            folder.chmod(0o755)
    if os.geteuid() == 0:
        os.seteuid(65534)
    yield
    if os.getuid() == 0:
        os.seteuid(0)


def files_below(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob('*')}


def test_a_file_that_can_be_written_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    existing, target = tmp_path / 'a.png', tmp_path / 'target.png'
    existing.write_bytes(b'an image')
    (tmp_path / 'link.png').symlink_to(target)
    before = files_below(tmp_path)
    for path in (existing, tmp_path / 'new.png', tmp_path / 'link.png', Path('relative.png')):
        check_output_file(path, 'give another')
    check_output_file(Path('/dev/stdout'), 'give another')
    for folder in (tmp_path, tmp_path / 'x' / 'y', Path('out'), Path()):
        check_output_folder(folder)
    assert files_below(tmp_path) == before


def test_a_report_folder_that_may_not_be_written_is_found_before_the_work(tmp_path, request):
    out = tmp_path / 'out'
    out.mkdir(mode=0o555)
    request.getfixturevalue('as_user')
    with pytest.raises(OutputError, match=r'cannot be written \(Permission denied\); give anoth'):
        ensure_folder(out)
    assert not list(out.iterdir())


def test_what_cannot_be_written_is_named_with_cause_and_cure(tmp_path, as_user):
    cases = [
        (tmp_path / 'none' / 'a.png', 'No such file or directory'),
        (tmp_path, 'Is a directory'),
        (Path(__file__) / 'a.png', 'Not a directory'),
        (tmp_path / 'a.png', 'Permission denied'),
    ]
    for path, cause in cases:
        with pytest.raises(OutputError, match=rf'cannot be written \({cause}\); give another'):
            check_output_file(path, 'give another')
    for path, cause in ((tmp_path / 'x' / 'y', 'Permission'), (Path(__file__) / 'x', 'Not a dir')):
        with pytest.raises(OutputError, match=rf'cannot be written \({cause}.*--out'):
            check_output_folder(path)


def test_calibrate_checks_both_files_before_the_test_set_is_read(tmp_path, capsys):
    pytest.importorskip('matplotlib', reason='needs config/requirements/train.txt')
    (tmp_path / 'config.json').write_text(CONFIG)
    before = files_below(tmp_path)

    def error_of(*arguments):
        command = ['calibrate', str(tmp_path), '--test-set', str(tmp_path / 'none.zip')]
        assert cli.main([*command, *arguments]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert 'none/r.png: cannot be written (No such' in error_of('--plot', f'{tmp_path}/none/r.png')
    assert 'r.xyz: no kind of image that matplotlib writes' in error_of('--plot', 'r.xyz')
    assert 'none.zip' in error_of('--plot', f'{tmp_path}/r.png')  # the plot is not the problem
    assert files_below(tmp_path) == before


def test_calibrate_refuses_a_config_that_it_may_not_write(tmp_path, capsys, as_user):
    command = ['calibrate', str(tmp_path), '--test-set', str(tmp_path / 'none.zip')]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, 'read_config', lambda folder: json.loads(CONFIG))
        assert cli.main(command) == 1
        assert 'config.json: cannot be written (Permission denied)' in capsys.readouterr().err
        with pytest.raises(OutputError, match=r'config\.json: cannot be written'):
            calibration.save_calibration(tmp_path, (1.0,), ((0.0, 0.0),), 0.5)


def test_a_plot_is_written_with_the_suffix_that_was_checked(tmp_path):
    pytest.importorskip('matplotlib', reason='needs config/requirements/train.txt')
    outcomes = np.array([[0.2, 0.0], [0.8, 1.0]])
    for name, written in (('plain', 'plain.png'), ('a.pdf', 'a.pdf'), ('B.PNG', 'B.PNG')):
        path = calibration.check_plot(tmp_path / name)
        calibration.plot_reliability(outcomes, path, 'a title')
        assert (tmp_path / written).stat().st_size > 0
    with pytest.raises(SettingsError, match=r'expected \.png or one of'):
        calibration.check_plot(tmp_path / 'a.xyz')
    with pytest.raises(OutputError, match='give another --plot'):
        calibration.plot_reliability(outcomes, tmp_path / 'none' / 'a.png', 'a title')


@pytest.mark.parametrize(
    'command',
    [
        'export --image none.png --depth none.png --k 1 1 1 1 --find x --out FILE/out',
        'segment IMAGE x --out FILE/out',
        'scenes --assets none --out FILE/out',
        'train --scenes none --out FILE/out',
        'finetune --model none --data reasonseg:none --out FILE/out --device cpu',
        'checksum lisa-tabletop --write-lock FILE/lock.json',
    ],
    ids=lambda command: command.split()[0],
)
def test_other_commands_check_their_target_first(command, tmp_path, capsys):
    (tmp_path / 'file').write_text('not a folder')
    Image.new('RGB', (8, 8)).save(tmp_path / 'image.png')
    command = command.replace('FILE', f'{tmp_path}/file').replace('IMAGE', f'{tmp_path}/image.png')
    assert cli.main(command.split()) == 1
    output = capsys.readouterr()
    assert 'file/' in output.err
    assert 'cannot be written (Not a directory); give another --' in output.err
    assert output.out == ''


def test_a_broken_lock_file_is_found_before_the_checksums(tmp_path, capsys):
    (tmp_path / 'lock.json').write_text('{}')
    assert cli.main(['checksum', 'lisa-tabletop', '--write-lock', f'{tmp_path}/lock.json']) == 1
    assert capsys.readouterr().out == ''
