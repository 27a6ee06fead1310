# SPDX-License-Identifier: Apache-2.0
"""The commands of `lisa-ros`, a module for each; `cli` puts them together.

`lisa-ros --help` imports all of them, so they import large libraries (torch, OpenCV, NumPy,
rosbags) in the functions that need them.
"""
