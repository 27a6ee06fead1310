# SPDX-License-Identifier: Apache-2.0
"""Judge the state of the node: levels, causes and cures from frozen reports. No ROS."""
