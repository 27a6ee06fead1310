# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros serve`: answer over HTTP for many robots, with replicas on Ray Serve."""

from __future__ import annotations

import argparse
import importlib.util
import logging
from pathlib import Path

from lisa_ros.commands.arguments import model_arguments, segmenter_arguments
from lisa_ros.errors import SettingsError
from lisa_ros.number_arguments import positive_float, positive_int

_PACKAGES = ('ray', 'starlette', 'uvicorn', 'python_multipart', 'prometheus_client')


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        'serve',
        help='answer over HTTP for many robots',
        description='Starts replicas of a model with Ray Serve and answers over HTTP; '
        'docs/fleet.md describes it. SIGHUP reads the token file and changed weights again. '
        '--max-new-tokens, --answer-style, --similarity-points, --typed-specials and --verify '
        'count for requests that give no other value.',
    )
    model_arguments(parser)
    group = parser.add_argument_group('server')
    group.add_argument(
        '--replicas',
        type=_replicas,
        default=1,
        metavar='N|auto',
        help='processes of the model; auto: as many as the queue needs (default: 1)',
    )
    group.add_argument(
        '--gpus-per-replica',
        type=positive_float,
        default=1.0,
        metavar='F',
        help='share of a GPU that a replica takes, such as 0.5 (default: 1)',
    )
    group.add_argument(
        '--ray',
        metavar='ADDRESS',
        help='Ray cluster, such as head:6379 (default: start one that only this machine reaches)',
    )
    group.add_argument(
        '--host', default='127.0.0.1', help='address to listen at (default: %(default)s)'
    )
    group.add_argument(
        '--port',
        type=_port,
        default=8000,
        metavar='P',
        help='0: one that is free, which the log names (default: %(default)s)',
    )
    group.add_argument(
        '--token-file',
        type=Path,
        metavar='FILE',
        help='lines of NAME TOKEN [REQUESTS_PER_SECOND]; only these clients may ask, at this rate '
        '(default: none, anybody who reaches the port)',
    )
    group.add_argument(
        '--max-batch',
        type=positive_int,
        default=8,
        metavar='N',
        help='requests that a replica answers at once, if the model can (default: %(default)s)',
    )
    group.add_argument(
        '--queue',
        type=positive_int,
        default=16,
        metavar='N',
        help='requests that wait at a replica; more are refused (default: %(default)s)',
    )
    group.add_argument(
        '--deadline',
        type=positive_float,
        default=30.0,
        metavar='SECONDS',
        help='of requests that give none; a thin node sends its own (default: %(default)s)',
    )
    parser.set_defaults(run=serve)


def serve(options: argparse.Namespace) -> None:
    """Serve until a stop signal."""
    _check_packages()
    from lisa_ros.perception.backend import LoadOptions
    from lisa_ros.perception.registry import without_auto
    from lisa_ros.serving.batch_queue import BatchLimits
    from lisa_ros.serving.limits import ServerLimits
    from lisa_ros.serving.model_location import locate
    from lisa_ros.serving.model_server import ReplicaPlan
    from lisa_ros.serving.ray_cluster import PoolPlan
    from lisa_ros.serving.run import ServerPlan, run_server

    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(levelname)s %(message)s')
    for name in ('python_multipart', 'uvicorn.error'):  # a line for each malformed request
        logging.getLogger(name).setLevel(logging.ERROR)
    arguments = segmenter_arguments(options)
    model, inference = str(arguments.pop('name')), arguments.pop('options')
    location = locate(model)
    replica = ReplicaPlan(
        location.served,
        model,
        without_auto(LoadOptions(**arguments)),
        inference,
        BatchLimits(places=options.queue, largest=options.max_batch),
        folder=location.folder,
    )
    pool = PoolPlan(replica, options.replicas, options.gpus_per_replica, options.ray)
    limits = ServerLimits(default_deadline=options.deadline)
    run_server(ServerPlan(pool, options.host, options.port, options.token_file, limits))


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f'expected a port of 0 to 65535, not {text}')
    return port


def _replicas(text: str) -> int | None:
    return None if text == 'auto' else positive_int(text)


def _check_packages() -> None:
    """Check that the packages of the extra are installed.

    Raises:
        SettingsError: one is missing.
    """
    from lisa_ros.optional_packages import install_command

    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f'lisa-ros serve needs the package {missing[0]}: {install_command("serve")}'
        )
