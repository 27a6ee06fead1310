# SPDX-License-Identifier: Apache-2.0
"""The command `lisa-ros`: parse, call, print. No ROS is needed for any of it.

Exit status: 0 done, 1 something the user can mend (one line on stderr says what), or a check that
failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from lisa_ros import masks
from lisa_ros.errors import DataError, LisaError, SettingsError
from lisa_ros.images import read_rgb
from lisa_ros.results import Segmentation
from lisa_ros.settings import Settings


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except LisaError as error:
        print(f'lisa-ros: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('lisa-ros: interrupted', file=sys.stderr)
        return 130


# ---------------------------------------------------------------- segment


def segment(options: argparse.Namespace) -> None:
    """Answer one request about one picture: words and pictures, or one JSON object."""
    image = read_rgb(options.image)
    result = _load(options).segment(image, options.query)
    out = options.out or (None if options.json else Path('lisa-out'))
    if out:
        _save(result, image, out)
    if options.json:
        print(json.dumps(as_json(result)))
        return
    print(result.answer)
    for i, mask in enumerate(result.masks):
        x, y, width, height = masks.box(mask)
        print(
            f'mask {i + 1}: score {result.scores[i]:.2f}, {masks.area(mask)} pixels '
            f'in {width} x {height} at ({x}, {y})'
        )
    print(f'{result.status.name}, {sum(result.timings.values()):.2f} s, pictures in {out}/')


def as_json(result: Segmentation) -> dict:
    """Return a result as plain data; masks as COCO run lengths (column by column)."""
    return {
        'query': result.query,
        'answer': result.answer,
        'answer_raw': result.answer_raw,
        'token_ids': list(result.token_ids),
        'status': result.status.name,
        'masks': [
            {
                'score': round(float(score), 4),
                'box': dict(zip(('x', 'y', 'width', 'height'), masks.box(mask), strict=True)),
                'area': masks.area(mask),
                'rle': masks.rle(mask),
            }
            for mask, score in zip(result.masks, result.scores, strict=True)
        ],
        'seconds': {stage: round(value, 4) for stage, value in result.timings.items()},
    }


def _save(result: Segmentation, image: np.ndarray, out: Path) -> None:
    from PIL import Image

    try:
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob('mask_*.png'):
            old.unlink()  # of an answer with more masks
        for i, mask in enumerate(result.masks):
            Image.fromarray(mask.astype(np.uint8) * 255).save(out / f'mask_{i + 1}.png')
        labels = [f'{score:.2f}' for score in result.scores]
        shown = masks.overlay(image, result.masks, labels, [result.query, result.answer])
        Image.fromarray(shown).save(out / 'overlay.png')
    except OSError as error:
        raise DataError(
            f'{out}: cannot be written to ({error}); give another with --out'
        ) from error


# ---------------------------------------------------------------- evaluate


def evaluate_scenes(options: argparse.Namespace) -> None:
    """Ask a model the exam of a split; print its figures."""
    from lisa_ros.evaluation import scenes

    exam = options.exam or scenes.OWN_EXAMS / f'{options.split}.zip'
    questions = scenes.read_exam(exam)[: options.limit]
    graded = list(scenes.sit(_load(options), questions))
    figures = scenes.report(graded)
    for one in [g for g in graded if g.question.expects][: options.examples]:
        mark = 'right' if one.explained else f'WRONG, not: {" ... ".join(one.question.expects)}'
        said = ' / '.join((*one.question.before, one.question.text))
        print(f'{said}\n    {one.answer}  ({mark}, IoU {one.overlap.iou:.2f})', file=sys.stderr)
    if options.json:
        print(json.dumps({'model': options.model, 'split': options.split, **figures}))
        return
    print(f'{"":16}{"gIoU":>8}{"cIoU":>8}{"count":>8}')
    for sort, row in figures.items():
        if isinstance(row, dict) and 'giou' in row:
            print(f'{sort:16}{row["giou"]:8.3f}{row["ciou"]:8.3f}{row["count"]:8d}')
    if figures['presence_accuracy'] is not None:
        print(f'there or not, right: {figures["presence_accuracy"]:.1%}')
    if figures['explanation_accuracy'] is not None:
        count = figures['explanations']
        print(f'thing and reason named rightly: {figures["explanation_accuracy"]:.1%} of {count}')
    if figures['ece'] is not None:
        print(f'expected calibration error of the scores: {figures["ece"]:.3f}')


def evaluate_pictures(options: argparse.Namespace) -> None:
    """Ask a model about labelled pictures; print its figures and leave a report."""
    from lisa_ros.datasets import named
    from lisa_ros.datasets.asking import examined
    from lisa_ros.datasets.labelled import Query
    from lisa_ros.datasets.llava import Talk
    from lisa_ros.datasets.reading import fatal
    from lisa_ros.evaluation import benchmarks, report

    if options.ask and '{}' not in options.ask:
        raise SettingsError(f'--ask {options.ask!r} has no {{}} for what is asked for')

    def question(query: Query) -> str:
        return options.ask.replace('{}', query.text) if options.ask else examined(query)

    broken: list[DataError] = []
    note = broken.append if options.skip_broken else fatal
    pictures = named.read(options.data, note)
    if isinstance(pictures[0], Talk):
        raise SettingsError(f'{options.data}: talks have no masks to compare with')
    report.made(options.out)
    cases = list(
        benchmarks.examine(
            _load(options),
            pictures[: options.limit],
            options.mode,
            question=question,
            first_only=options.first_only,
            broken=note,
            out=options.out / 'pictures',
        )
    )
    settings = {name: getattr(options, name) for name in _MODEL_SETTINGS}
    run = report.Run(
        title=f'{options.model} on {options.data}',
        mode=options.mode,
        settings={
            **settings,
            'data': options.data,
            'first query only': options.first_only,
            'question': options.ask or "of LISA's evaluation",
        },
        cases=cases,
        broken=[str(error) for error in broken],
        published=benchmarks.published(options.data) if _as_the_paper(options) else {},
    )
    _print_report(report.write(run, options.out), options)


def _as_the_paper(options: argparse.Namespace) -> bool:
    """Return whether a data set is asked as the paper asks it: only then its figures compare."""
    one_of_each = options.first_only or options.data.startswith('refer:')
    return one_of_each and not options.ask and options.limit is None


def evaluate_bag(options: argparse.Namespace) -> None:
    """Ask a model about a bag's frames; print its figures and leave a report."""
    from lisa_ros.evaluation import report
    from lisa_ros.evaluation.commands import read_commands
    from lisa_ros.evaluation.replay import offline
    from lisa_ros.evaluation.truth import open_truth

    commands = read_commands(options.commands)
    truth = open_truth(options.truth, options.bag) if options.truth else None
    report.made(options.out)
    cases = list(
        offline(
            _load(options),
            options.bag,
            commands,
            topic=options.topic,
            truth=truth,
            every=options.every,
            out=options.out / 'pictures',
        )
    )
    settings = {name: getattr(options, name) for name in _MODEL_SETTINGS}
    asked = ('bag', 'commands', 'topic', 'truth', 'every')
    run = report.Run(
        title=f'{options.model} on {options.bag.name}',
        mode='offline',
        settings={**settings, **{name: str(getattr(options, name)) for name in asked}},
        cases=cases,
    )
    _print_report(report.write(run, options.out), options)


def _print_report(plain: dict, options: argparse.Namespace) -> None:
    """Print the figures of a report, as a table or as one JSON object."""
    if options.json:
        print(json.dumps({name: plain[name] for name in ('title', 'mode', 'figures', 'broken')}))
        return
    print(f'{plain["title"]}, mode {plain["mode"]}')
    print(f'{"":16}{"gIoU":>8}{"95 %":>16}{"cIoU":>8}{"P@0.5":>8}{"count":>8}')
    for sort, row in plain['figures'].items():
        if row['count']:
            sure = ' - '.join(f'{value:.3f}' for value in row['giou_interval'] or ())
            half = '' if row['p@0.5'] is None else f'{row["p@0.5"]:.3f}'
            print(
                f'{sort:16}{row["giou"]:8.3f}{sure:>16}{row["ciou"]:8.3f}{half:>8}'
                f'{row["count"]:8d}'
            )
    for one in plain['broken']:
        print(f'not used: {one}')
    print(f'report: {options.out}/report.html')


def evaluate_compare(options: argparse.Namespace) -> None:
    """Hold one evaluation against another, question by question."""
    from lisa_ros.evaluation import report

    plain = report.compare(options.first, options.second, options.out)
    for letter, title, mode in zip('AB', plain['titles'], plain['modes'], strict=True):
        print(f'{letter}: {title}, mode {mode}')
    print(f'{"":16}{"A":>8}{"B":>8}{"B - A":>8}{"p":>8}{"better":>8}{"worse":>8}{"count":>8}')
    for sort, row in plain['figures'].items():
        first, second = row['giou']
        print(
            f'{sort:16}{first:8.3f}{second:8.3f}{row["difference"]:+8.3f}{row["p"]:8.4f}'
            f'{row["better"]:8d}{row["worse"]:8d}{row["count"]:8d}'
        )
    print(f'report: {options.out}/report.html')


def calibrate(options: argparse.Namespace) -> None:
    """Make a model's scores honest on an exam: fit them, choose the threshold, note both."""
    from lisa_ros import confidence
    from lisa_ros.evaluation import calibration, scenes
    from lisa_ros.segmenter import Segmenter

    calibration.own_config(options.folder)  # before the exam, which takes minutes
    if options.plot and importlib.util.find_spec('matplotlib') is None:
        raise SettingsError("--plot needs matplotlib: pip install '.[train]'")
    lisa = Segmenter.load(
        str(options.folder), device=options.device, precision='fp32', confidence_threshold=0.0
    )
    graded = list(scenes.sit(lisa, scenes.read_exam(options.exam)))
    weights = calibration.fit(graded)
    graded = [
        replace(g, scores=tuple(confidence.score(e, weights) for e in g.evidence)) for g in graded
    ]
    asked = [g for g in graded if g.question.sort in scenes.PRESENCE]
    threshold = calibration.best_threshold(
        [max(g.scores, default=0.0) for g in asked], [bool(g.question.targets) for g in asked]
    )
    calibration.note(options.folder, weights, threshold)
    rows = calibration.outcomes(graded)
    if options.plot:
        calibration.plot(rows, options.plot, f'{options.folder.name}: are its scores honest?')
    error = calibration.expected_error(rows)
    print(f'{len(rows)} masks, calibration error {error:.3f}, threshold {threshold:.2f}')


# ---------------------------------------------------------------- scenes, train


def scenes(options: argparse.Namespace) -> None:
    """Render the scenes of a split, or a bag of one of them; write its exam."""
    from lisa_ros.training import exams, sample
    from lisa_ros.training import scenes as rendering

    if options.bag is not None:
        cache = rendering.prepare_assets(options.assets, options.out / 'assets')
        sample.write_sample(cache, options.out / 'sample', options.split, options.bag)
        return
    rendering.render_split(
        options.assets, options.out, options.split, options.count, workers=options.workers
    )
    exams.write_exam(options.out / options.split)
    if options.pack:
        exams.pack([options.out / split for split in options.pack], options.out / 'exam.zip')


def train(options: argparse.Namespace) -> int:
    """Train lisa-tabletop, or go on with a run; or check the trainer against the original."""
    if options.check is not None:
        return _check(options)
    if options.scenes is None or options.out is None:
        raise SettingsError('train needs --scenes and --out (or --check and a golden set)')
    from lisa_ros.segmenter import device_named
    from lisa_ros.training import train as tabletop

    device = str(device_named(options.device or 'cpu'))  # before the scenes are read
    given = {f.name: getattr(options, f.name, None) for f in fields(tabletop.Recipe)}
    recipe = tabletop.Recipe(**{k: v for k, v in given.items() if v is not None})
    recipe = replace(recipe, pace=_pace(options, recipe.pace))
    return 0 if tabletop.train(options.out, options.scenes, recipe, device) else 130


def _pace(options: argparse.Namespace, usual):
    """Return the usual pace with what was given on the command line."""
    given = {f.name: getattr(options, f.name, None) for f in fields(usual)}
    return replace(usual, **{name: value for name, value in given.items() if value is not None})


def _check(options: argparse.Namespace) -> int:
    """Hold losses and gradients against the original's; return 1 if they differ."""
    from lisa_ros.training.check import check

    report = check(options.check, options.device or 'cpu')
    if options.json:
        print(json.dumps(report))
    else:
        print(f'{"":32}{"golden":>14}{"ours":>14}{"difference":>12}')
        for case in report['cases']:
            tokens = 'the same tokens' if case['tokens'] else 'OTHER TOKENS'
            print(f'{case["set"]} {case["case"]}: {tokens}')
            for name, row in {**case['losses'], **case['gradient_norms']}.items():
                short = name if len(name) < 30 else f'...{name[-27:]}'
                numbers = f'{row["golden"]:14.6g}{row["ours"]:14.6g}{row["difference"]:12.1e}'
                print(f'  {short:30}{numbers}{"" if row["ok"] else "  DIFFERS"}')
        print('all agree' if report['ok'] else 'they differ')
    return 0 if report['ok'] else 1


# ---------------------------------------------------------------- frames, finetune


def frames(options: argparse.Namespace) -> None:
    """Take pictures out of a bag."""
    from lisa_ros.training.frames import take

    written = take(options.bag, options.out, options.topic, options.every)
    print(f'{len(written)} frames in {options.out}/: label them with `labelme {options.out}`')


def finetune(options: argparse.Namespace) -> int:
    """Fine-tune a LISA on labelled pictures, or go on with a run."""
    from lisa_ros.datasets import named
    from lisa_ros.datasets.llava import Talk
    from lisa_ros.segmenter import device_named
    from lisa_ros.training import finetune as school
    from lisa_ros.training.mixture import Mixture
    from lisa_ros.training.sources import source

    device = str(device_named(options.device))
    recipe = school.Recipe()
    given = {f.name: getattr(options, f.name, None) for f in fields(recipe)}
    recipe = replace(recipe, **{k: v for k, v in given.items() if v is not None})
    if options.precision is None:
        recipe = replace(recipe, precision='bf16' if device.startswith('cuda') else 'fp32')
    pace = _pace(options, recipe.pace)
    pace = replace(
        pace,
        bf16=recipe.precision != 'fp32',
        better='val_giou' if options.val else None,
        warm_up=min(pace.warm_up, max(1, pace.steps // 5)),
    )
    recipe = replace(recipe, pace=pace)
    sources = {
        data: source(named.read(data), recipe.queries, options.words_only) for data in options.data
    }
    rates = options.rates or [1.0] * len(sources)
    if len(rates) != len(sources):
        raise SettingsError(
            f'{len(rates)} --rates for {len(sources)} data sets of --data: give one for each'
        )
    mixture = Mixture(sources, dict(zip(sources, rates, strict=True)), pace.seed)
    validation = named.read(options.val) if options.val else []
    if validation and isinstance(validation[0], Talk):
        raise SettingsError(f'--val {options.val}: talks have no masks to validate on')
    origin = school.Origin(
        options.llava or _own_or(options.model),
        options.vision_tower,
        options.sam,
        is_llava=options.llava is not None,
        template=options.template,
        seed=pace.seed,
    )
    done = school.finetune(options.out, origin, mixture, validation, recipe, device)
    return 0 if done else 130


def _own_or(name: str) -> str | Path:
    """Return the folder of a model of ours, or the name as it is."""
    from lisa_ros.segmenter import OWN_MODELS

    own = OWN_MODELS / name
    return own if (own / 'config.json').is_file() else name


# ---------------------------------------------------------------- arguments


def _load(options: argparse.Namespace):
    from lisa_ros.segmenter import Segmenter  # torch and transformers take seconds to import

    return Segmenter.load(
        options.model,
        device=options.device,
        precision=options.precision,
        vision_tower=options.vision_tower,
        template=options.template,
        max_new_tokens=options.max_new_tokens,
        typed_specials=options.typed_specials,
    )


_MODEL_SETTINGS = ('model', 'vision_tower', 'template', 'device', 'precision', 'max_new_tokens')


def _count(text: str) -> int:
    """Return a number of 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no number of 1 or more')
    return int(text)


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings that say which model answers, with the node's own words for them."""
    for field in fields(Settings):
        if field.name in _MODEL_SETTINGS:
            about = field.metadata['about']
            parser.add_argument(
                f'--{field.name.replace("_", "-")}',
                type=type(field.default),
                default=field.default,
                choices=about.choices or None,
                metavar=None if about.choices else field.name.upper(),
                help=f'{about.sentence} (default: {field.default or "none"})',
            )
    parser.add_argument(
        '--typed-specials',
        action='store_true',
        help='tokens written out in QUERY, such as [SEG], are those tokens, as in the original',
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='lisa-ros', description='Find things in pictures from words (LISA).'
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    one = commands.add_parser('segment', help='one request about one picture')
    one.add_argument('image', type=Path, metavar='IMAGE')
    one.add_argument('query', metavar='QUERY', help='such as "something to drink from"')
    _model_arguments(one)
    one.add_argument('--out', type=Path, metavar='DIR', help='for masks and overlay (lisa-out)')
    one.add_argument('--json', action='store_true', help='print one JSON object')
    one.set_defaults(run=segment)

    many = commands.add_parser('evaluate', help='how good a model is')
    kinds = many.add_subparsers(required=True, metavar='WHAT')
    tables = kinds.add_parser('scenes', help='on rendered tables with known truth')
    tables.add_argument('--split', default='test', help='an exam of the package (default: test)')
    tables.add_argument('--exam', type=Path, help='a folder or zip with an exam.json of your own')
    tables.add_argument('--limit', type=int, help='only the first questions')
    tables.add_argument('--json', action='store_true', help='print one JSON object')
    tables.add_argument(
        '--examples', type=int, default=0, metavar='N', help='print N answers that give reasons'
    )
    _model_arguments(tables)
    tables.set_defaults(run=evaluate_scenes)

    labelled = kinds.add_parser('pictures', help='on labelled pictures, as ReasonSeg or refCOCO')
    labelled.add_argument('data', metavar='DATA', help='a folder, or as docs/evaluation.md names')
    labelled.add_argument('--out', type=Path, required=True, metavar='DIR', help='for the report')
    labelled.add_argument(
        '--mode',
        default='generate',
        choices=('generate', 'teacher_forced'),
        help='teacher_forced: the answer is given, as the paper has it (default: generate)',
    )
    labelled.add_argument(
        '--ask',
        metavar='TEXT',
        help='how a query is put, as "find the {}" (default: as LISA\'s own evaluation does)',
    )
    labelled.add_argument(
        '--first-only', action='store_true', help="each picture's first query, as the paper has it"
    )
    labelled.add_argument(
        '--skip-broken', action='store_true', help='leave out what cannot be read, and say so'
    )
    labelled.add_argument('--limit', type=_count, help='only the first pictures')
    labelled.add_argument('--json', action='store_true', help='print one JSON object')
    _model_arguments(labelled)
    labelled.set_defaults(run=evaluate_pictures)

    replayed = kinds.add_parser('bag', help='on the frames of a bag, with commands of your own')
    replayed.add_argument('bag', type=Path, metavar='BAG', help='of ROS 2 (mcap, sqlite3) or 1')
    replayed.add_argument(
        '--commands', type=Path, required=True, metavar='YAML', help='see docs/evaluation.md'
    )
    replayed.add_argument('--truth', help='a folder of <stamp>.png, a topic, or labelled pictures')
    replayed.add_argument('--topic', help='of Image or CompressedImage (default: the only one)')
    replayed.add_argument(
        '--every', type=_count, default=10, help='frames between questions without a time (10)'
    )
    replayed.add_argument('--out', type=Path, required=True, metavar='DIR', help='for the report')
    replayed.add_argument('--json', action='store_true', help='print one JSON object')
    _model_arguments(replayed)
    replayed.set_defaults(run=evaluate_bag)

    both = kinds.add_parser('compare', help='two reports on the same questions')
    both.add_argument('first', type=Path, metavar='A')
    both.add_argument('second', type=Path, metavar='B')
    both.add_argument('--out', type=Path, required=True, metavar='DIR', help='for the report')
    both.set_defaults(run=evaluate_compare)

    honest = commands.add_parser('calibrate', help="make a model's scores honest on an exam")
    honest.add_argument('folder', type=Path, metavar='MODEL', help='of our own layout; changed')
    honest.add_argument('--exam', type=Path, required=True, help='a folder or zip, not the test')
    honest.add_argument('--plot', type=Path, metavar='PNG', help='a reliability plot')
    honest.add_argument('--device', help='cpu, cuda (default: the GPU where there is one)')
    honest.set_defaults(run=calibrate)

    rendered = commands.add_parser('scenes', help='render tabletop scenes (needs MuJoCo)')
    rendered.add_argument(
        '--assets', type=Path, required=True, help='folder of meshes/, textures/'
    )
    rendered.add_argument('--out', type=Path, required=True, help='a folder for all splits')
    rendered.add_argument('--split', default='train', choices=('train', 'val', 'test', 'unseen'))
    rendered.add_argument('--count', type=int, default=10000, help='scenes (default: 10000)')
    rendered.add_argument('--workers', type=int, default=1, help='processes (default: 1)')
    rendered.add_argument('--bag', type=int, metavar='N', help='a bag of scene N instead')
    rendered.add_argument('--pack', nargs='+', metavar='SPLIT', help='zip these splits as an exam')
    rendered.set_defaults(run=scenes)

    school = commands.add_parser('train', help='train lisa-tabletop from scratch, or go on')
    school.add_argument('--scenes', type=Path, help='what `lisa-ros scenes` made')
    school.add_argument('--out', type=Path, help='the run: goes on if it is there')
    school.add_argument('--device', help='cpu or cuda (default: cpu)')
    school.add_argument(
        '--check',
        type=Path,
        metavar='FOLDER',
        help="train nothing: compare losses and gradients with the original's golden set",
    )
    school.add_argument('--json', action='store_true', help='of --check: print one JSON object')
    _pace_arguments(school)
    for name in ('looks', 'pictures', 'requests', 'pairs', 'threads'):
        school.add_argument(f'--{name}', type=int)
    school.add_argument(
        '--without', nargs='+', metavar='SORT', help='sorts left out (lore knows, too)'
    )
    school.add_argument('--start', type=Path, help='a model folder to start from')
    school.add_argument('--eyes', type=Path, help='or one whose vision parts alone are taken')
    school.add_argument('--weight-decay', type=float)
    school.add_argument('--accumulate', type=int, help='micro-batches of a step (default: 1)')
    school.add_argument('--better', help='figure that must rise, such as val_explicit')
    school.add_argument('--patience', type=int, help='end after so many validations without it')
    school.add_argument('--average', type=float, help="decay of the weights' moving average")
    school.add_argument('--bf16', action=argparse.BooleanOptionalAction, default=None)
    school.set_defaults(run=train)

    taken = commands.add_parser('frames', help='pictures out of a bag, to be labelled')
    taken.add_argument('bag', type=Path, metavar='BAG', help='rosbag2 folder, or a bare .mcap')
    taken.add_argument('--topic', help='of Image or CompressedImage (default: the only one)')
    taken.add_argument('--out', type=Path, required=True, help='folder for <stamp in ns>.png')
    taken.add_argument(
        '--every', type=float, default=0.0, metavar='SECONDS', help='between frames (default: all)'
    )
    taken.set_defaults(run=frames)

    _finetune_arguments(
        commands.add_parser(
            'finetune',
            help='teach a LISA your own pictures by LoRA',
            description='Fine-tunes a LISA on labelled pictures, as the original does: LoRA on '
            'the language model; its words, text_hidden_fcs and the mask decoder whole. Writes '
            'the merged weights to RUN/model, and in the released layout to RUN/original.',
        )
    )
    return parser


def _finetune_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `finetune` asks; the numbers' defaults are in training.finetune.Recipe."""
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument('--model', help='a LISA: lisa-tabletop, a folder or a hub id')
    start.add_argument('--llava', help='or a LLaVA, folder or hub id, to begin a LISA; with --sam')
    parser.add_argument('--sam', type=Path, help='a .pth of segment-anything')
    parser.add_argument('--vision-tower', help="CLIP (default: the checkpoint's own)")
    parser.add_argument('--template', help="conversation template (default: the checkpoint's own)")
    parser.add_argument(
        '--data',
        nargs='+',
        required=True,
        help='FOLDERs of pictures with JSON beside them as ReasonSeg and labelme have it, or with '
        'masks; or published data sets, as refer:refer_seg/refcoco (docs/finetuning.md)',
    )
    parser.add_argument('--rates', type=float, nargs='+', help='of each of them (default: alike)')
    parser.add_argument('--val', metavar='DATA', help='pictures to validate on')
    parser.add_argument('--out', type=Path, required=True, metavar='RUN', help='goes on if there')
    parser.add_argument('--device', help='cpu, cuda (default: the GPU where there is one)')
    parser.add_argument(
        '--precision',
        choices=('fp32', 'bf16', 'nf4'),
        help='of the weights that stay (default: bf16 on a GPU, fp32 on a CPU); nf4 needs a GPU '
        'and bitsandbytes, and lets 7B fit into 24 GB',
    )
    _pace_arguments(parser)
    for name, kind, what in (
        ('--accumulate', int, 'micro-batches of a step (default: 10)'),
        ('--patience', int, 'end after so many validations without a rise'),
        ('--pictures', int, 'in a micro-batch (default: 1)'),
        ('--queries', int, 'about each picture at most (default: 3)'),
        ('--rank', int, 'of LoRA (default: 8)'),
        ('--alpha', int, 'of LoRA (default: 16)'),
        ('--dropout', float, 'of LoRA (default: 0.05)'),
    ):
        parser.add_argument(name, type=kind, help=what)
    parser.add_argument(
        '--words-only',
        type=float,
        default=0.1,
        help='share of explained pictures that are answered without a mask (default: 0.1)',
    )
    parser.add_argument(
        '--recompute',
        action=argparse.BooleanOptionalAction,
        default=None,
        help='work activations out twice, to save memory (default: yes)',
    )
    parser.set_defaults(run=finetune)


def _pace_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the numbers of training.loop.Pace; the defaults are with each training."""
    for name, kind, what in (
        ('--steps', int, 'of the optimizer'),
        ('--rate', float, 'peak learning rate'),
        ('--warm-up', int, 'steps in which it rises'),
        ('--cool-down', float, 'share of the steps in which it falls'),
        ('--validate-every', int, 'steps'),
        ('--save-every', int, 'steps'),
        ('--seed', int, 'of all that is drawn'),
    ):
        parser.add_argument(name, type=kind, help=what)


if __name__ == '__main__':
    raise SystemExit(main())
