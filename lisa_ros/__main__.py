# SPDX-License-Identifier: Apache-2.0
"""`python -m lisa_ros`: the command `lisa-ros`."""

from lisa_ros.startup import run_command_line

run_command_line()
