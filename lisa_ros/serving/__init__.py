# SPDX-License-Identifier: Apache-2.0
"""A model behind HTTP for many robots, without ROS."""
