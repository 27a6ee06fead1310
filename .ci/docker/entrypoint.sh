#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run a command in the environment of ROS 2 and lisa_ros.
set -e
source "/opt/ros/$ROS_DISTRO/setup.bash"
source /opt/lisa_ros/install/setup.bash
exec "$@"
