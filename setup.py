# SPDX-License-Identifier: Apache-2.0
# `pip install .` installs the library, the weights and the command lisa-ros, without ROS.
# In a ROS workspace colcon uses package.xml and CMakeLists.txt and ignores this file.
import re
from pathlib import Path

from setuptools import find_packages, setup

init_file = Path(__file__).parent / 'lisa_ros/__init__.py'
message_files = [('share/lisa_ros/msg', sorted(map(str, Path('msg').glob('*.msg'))))]

setup(
    name='lisa_ros',
    version=re.search(r"__version__ = '(.+)'", init_file.read_text())[1],
    description='LISA, reasoning segmentation: image and command in, masks and reason out',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['lisa_ros', 'lisa_ros.*']),
    data_files=message_files,  # result bags contain them
    package_data={
        'lisa_ros': ['weights/**/*', 'samples/**/*', 'ros/*.xml', 'evaluation/templates/*']
    },
    entry_points={'console_scripts': ['lisa-ros = lisa_ros.startup:run_command_line']},
    install_requires=[
        'huggingface_hub>=1',
        'jinja2>=3.1',
        'numpy>=1.26',
        'opencv-python-headless>=4.8',
        'pillow>=10',
        'pyyaml>=6',
        'rosbags>=0.10',
        'safetensors>=0.4',
        'sentencepiece>=0.2',
        'torch>=2.9',
        'tqdm>=4.66',
        'transformers>=5.20,<6',
    ],
    extras_require={
        # lisa-ros scenes, train, finetune, calibrate --plot
        'train': [
            'matplotlib>=3.8',
            'mujoco>=3',
            'pycocotools>=2.0.7',
            'pymeshlab>=2023',
        ],
        # voice_node, lisa-ros listen
        'voice': [
            'pocketsphinx>=5,<6',
            'rapidfuzz>=3',
            'silero-vad>=6',
            'sounddevice>=0.4',
            'soxr>=0.5',
        ],
        # the only version whose wheel contains its model
        'moonshine': ['moonshine-voice==0.0.73', 'platformdirs'],
        'ray': ['ray[data]>=2.50'],  # lisa-ros evaluate bag --ray
        'gpu': ['bitsandbytes>=0.44'],  # precision int8 and nf4
        'test': ['hypothesis', 'psutil', 'pytest>=8', 'ruff>=0.14,<0.15', 'segment-anything'],
    },
)
