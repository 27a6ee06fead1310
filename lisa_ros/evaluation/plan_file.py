# SPDX-License-Identifier: Apache-2.0
"""plan.json in the folder of several bags: what was asked, and the files that it was asked of.

A run that continues another one keeps the finished bags. Their figures are those of the model and
the labels as they were then, so the plan has size and time of each of these files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from lisa_ros.errors import DataError, OutputError
from lisa_ros.evaluation import report
from lisa_ros.evaluation.bag_job import BagJob, BatchPlan
from lisa_ros.evaluation.report_files import encodable_texts
from lisa_ros.files.json_schema import TEXT, MapOf, check_json
from lisa_ros.files.text import encodable, read_json
from lisa_ros.model.checksums import file_checksums, folder_checksum
from lisa_ros.model.registry import resolve_bundled_model

_FILES = 'files'  # key of plan.json; plans of earlier versions lack it
_NAME = 'plan.json'


def check_or_write_plan(plan: BatchPlan, jobs: Sequence[BagJob], out: Path) -> None:
    """Write the plan into the folder; check that it is the plan of the finished bags.

    Prints how many bags are finished, and a warning where it cannot be known whether their files
    have changed.

    Args:
        plan: what to ask, and with which model.
        jobs: the bags.
        out: the folder; it is created.

    Raises:
        DataError: it has another plan, or finished bags of other files.
        OutputError: it cannot be written to.
    """
    content = encodable_texts(json.loads(json.dumps(asdict(plan), default=str)))
    del content['skip_broken']  # it changes no answer
    path = report.ensure_folder(out) / _NAME
    saved_files: Mapping[str, Mapping[str, str]] = {}
    if path.exists():
        saved = read_json(path)
        saved_files = saved.pop(_FILES, {}) if isinstance(saved, dict) else {}
        check_json(path, saved_files, MapOf(MapOf(TEXT)), _FILES)
        if saved != content:
            raise DataError(
                f'{out} holds an evaluation with another model, other commands or settings: '
                'give another --out, or remove it'
            )
    done = [encodable(job.name) for job in jobs if job.is_done(out)]
    if done:
        print(f'{len(done)} of {len(jobs)} bags are from an earlier run', file=sys.stderr)
    files = encodable_texts(_files_by_job(plan, jobs, out))
    _check_unchanged(done, files, saved_files, out)
    if done and encodable(str(plan.model)) not in files[done[0]]:
        print(
            f'warning: {plan.model} is no local folder, so it is not known whether its weights '
            'have changed since; if they have, give another --out',
            file=sys.stderr,
        )
    new_files = {name: states for name, states in files.items() if name not in done}
    content[_FILES] = {**saved_files, **new_files}
    try:
        path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    except OSError as error:
        raise OutputError(f'{path}: cannot be written ({error}); give another --out') from error


def _check_unchanged(
    done: Sequence[str],
    files: Mapping[str, Mapping[str, str]],
    saved: Mapping[str, Mapping[str, str]],
    out: Path,
) -> None:
    """Check that the files of finished bags, given by their names, have not changed since.

    Raises:
        DataError: some have.
    """
    unknown = [name for name in done if name not in saved]
    if unknown:
        print(
            f'warning: {out / _NAME} does not say which files {", ".join(unknown)} were evaluated '
            'with: if the model or the labels have changed since, give another --out',
            file=sys.stderr,
        )
    changed: dict[str, list[str]] = {}
    for name in done:
        before, now = saved.get(name, {}), files[name]
        for source in sorted(before.keys() & now.keys()):
            if before[source] != now[source]:
                changed.setdefault(source, []).append(name)
    if changed:
        source, names = next(iter(changed.items()))
        folders = ' '.join(str(out / name) for name in names)
        raise DataError(
            f'{source} has changed since {", ".join(names)} in {out} were evaluated: remove '
            f'{folders} to evaluate them again, or give another --out'
        )


def _files_by_job(plan: BatchPlan, jobs: Sequence[BagJob], out: Path) -> dict[str, dict[str, str]]:
    """Return the state of the local files that each bag is evaluated with, by their source."""
    options = plan.load_options
    models = (plan.model, options.vision_tower, options.segmenter_model, options.sam)
    shared = [str(model) for model in models if model]
    # bags share the model, and perhaps the ground truth
    states = {model: state for model in shared if (state := _bundled_state(model))}
    files: dict[str, dict[str, str]] = {}
    for job in jobs:
        truth = job.ground_truth(plan)
        sources = [*shared, str(job.bag), *([truth] if truth else [])]
        for source in sources:
            if source not in states:
                states[source] = state_of(source, out)
        files[job.name] = {source: states[source] for source in sources if states[source]}
    return files


def _local_paths(source: str) -> Iterator[Path]:
    """Yield the files and folders that "name", "scheme:path" or "kind:path:path" names."""
    rest = source.partition(':')[2]
    for text in dict.fromkeys((source, rest, *rest.split(':'))):
        try:
            path = Path(text).expanduser()
            is_local = bool(text) and path.exists()
        except (OSError, RuntimeError):  # its name is too long, its folder closed; no such user
            continue
        if is_local:
            yield path
            if text == source:
                return


def _bundled_state(model: str) -> str:
    """Return the checksum of a model of this package, whose times change with each installation.

    '' of another model.
    """
    folder = str(resolve_bundled_model(model))
    return '' if folder == model else folder_checksum(file_checksums(Path(folder)))


def _files_below(folder: Path, out: Path) -> Iterator[Path]:
    """Yield the files below a folder, also those of linked folders, each folder once.

    Links to `out`, and to a folder that holds this one, are not followed.
    """
    visited: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        whole = Path(parent).resolve()
        is_above = whole != folder and folder.is_relative_to(whole)
        if whole in visited or is_above or whole.is_relative_to(out):
            folders.clear()
            continue
        visited.add(whole)
        folders.sort(key=lambda name: (Path(parent, name).is_symlink(), name))
        yield from (Path(parent, name) for name in names)


def state_of(source: str, out: Path) -> str:
    """Return a text that changes with the name, size or time of a local file of a source.

    Files in `out` and hidden files do not count; '' without a file.
    """
    out = out.resolve()
    lines = []
    for path in map(Path.resolve, _local_paths(source)):
        for file in sorted(_files_below(path, out)) if path.is_dir() else [path]:
            name = file.relative_to(path).as_posix()
            is_hidden = file != path and '/.' in f'/{name}'
            if is_hidden or file.is_relative_to(out):
                continue
            with contextlib.suppress(OSError):  # it was removed, or may not be read
                facts = file.stat()
                lines.append(f'{name!r} {facts.st_size} {facts.st_mtime_ns}')
    digest = hashlib.sha256('\n'.join(lines).encode()).hexdigest()
    return f'{len(lines)} files, {digest[:16]}' if lines else ''
