# SPDX-License-Identifier: Apache-2.0
# `pip install '.[local]'` installs the library, the weights and the command lisa-ros, without ROS;
# `pip install '.[thin]'` without PyTorch and Transformers, for a model on a server.
# An extra can only add packages, so PyTorch must be one: else the thin installation would have it.
# In a ROS workspace colcon uses package.xml and CMakeLists.txt and ignores this file: there
# robot.txt, which is both, or thin.txt is installed with pip.
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from setuptools import find_packages, setup

manifest = ET.parse(Path(__file__).parent / 'package.xml').getroot()  # noqa: S314  our own
init_file = Path(__file__).parent / 'lisa_ros/__init__.py'
message_files = [('share/lisa_ros/msg', sorted(map(str, Path('msg').glob('*.msg'))))]


def requirements(name):
    """Return the requirements of a file in config/requirements."""
    file = Path(__file__).parent / f'config/requirements/{name}.txt'
    lines = file.read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


EXTRAS = ('train', 'voice', 'moonshine', 'mcp', 'ray', 'serve', 'gpu')

setup(
    name='lisa_ros',
    version=re.search(r"__version__ = '(.+)'", init_file.read_text())[1],
    description='LISA, reasoning segmentation: image and command in, masks and reason out',
    license='Apache-2.0',
    url=manifest.findtext('url[@type="website"]'),
    author=manifest.findtext('author'),
    maintainer=manifest.findtext('maintainer'),
    maintainer_email=manifest.find('maintainer').get('email'),
    python_requires='>=3.10',
    packages=find_packages(include=['lisa_ros', 'lisa_ros.*']),
    data_files=message_files,  # result bags contain them
    package_data={
        'lisa_ros': ['weights/**/*', 'samples/**/*', 'ros/*.xml', 'evaluation/templates/*']
    },
    entry_points={'console_scripts': ['lisa-ros = lisa_ros.startup:run_command_line']},
    install_requires=requirements('library'),
    extras_require={
        'local': [*requirements('local'), *requirements('thin')],
        'thin': requirements('thin'),
        **{name: requirements(name) for name in EXTRAS},
        'test': ['hypothesis', 'psutil', 'pytest>=8', 'ruff>=0.14,<0.15', 'segment-anything'],
    },
)
