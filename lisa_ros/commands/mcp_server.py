# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros mcp`: let an agent use a running node, by the Model Context Protocol."""

from __future__ import annotations

import argparse
import os
import signal

from lisa_ros.agents.http_address import HttpAddress
from lisa_ros.errors import SettingsError
from lisa_ros.optional_packages import install_command


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser('mcp', help='serve a running node to agents (MCP)')
    parser.add_argument(
        '--node', default='lisa', metavar='NAME', help='the running node (default: lisa)'
    )
    parser.add_argument(
        '--http',
        metavar='PORT',
        help='serve streamable HTTP on this port of 127.0.0.1; 0: a free one (default: stdin and '
        'stdout)',
    )
    parser.set_defaults(run=mcp)


def mcp(options: argparse.Namespace) -> None:
    """Serve until stdin ends or a signal comes; the signal then has its usual effect."""
    address = None if options.http is None else HttpAddress.parse(options.http)
    try:
        from lisa_ros.agents.server import make_server, serve_http, serve_stdio
    except ImportError as error:  # also of an older version
        raise SettingsError(
            f'an MCP server needs the package mcp ({error}): {install_command("mcp")}'
        ) from error
    os.environ['RCUTILS_LOGGING_USE_STDOUT'] = '0'  # stdout is the protocol's
    try:
        from lisa_ros.ros.agent_access import RosNodeAccess
    except ImportError as error:
        raise SettingsError(
            f'an MCP server needs ROS 2 and the built package ({error}): `make setup`, or source '
            'install/setup.bash'
        ) from error
    node = RosNodeAccess(options.node)
    try:
        server = make_server(node)
        if address is None:
            ended_by = serve_stdio(server)
        else:
            ended_by = serve_http(server, address, options.node)
    finally:
        node.close()
    if ended_by is not None:
        signal.raise_signal(ended_by)
