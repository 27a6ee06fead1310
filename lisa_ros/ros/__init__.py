# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 shell: the only folder that imports rclpy."""
