# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros doctor`: checks of the installation, the model and a running node. No ROS here.

What needs torch, OpenCV or rclpy runs in a process of its own (probe.py), so that a library that
hangs or crashes ends one check. The processes print facts; functions here judge them.
"""
