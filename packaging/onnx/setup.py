"""The torch-free distribution: the part of musetalk_enhance that `musetalk-enhance onnx` needs.

    pip install ./packaging/onnx        # from a checkout

It takes its modules from the tree above, and names none of the requirements of the whole library.
"""

import os
import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "musetalk_enhance"
ROOMS = ("config", "faces", "frames", "media", "onnx_pipeline", "runtime", "weights")
"""Packages that are taken whole; their modules import torch only where they use it."""
MODULES = {"musetalk_enhance": ("__init__", "__main__", "_version", "errors")}
MODULES["musetalk_enhance.cli"] = ("__init__", "onnx", "parser", "weights")


class BuildPart(build_py):
    """Leaves out the modules that are not listed."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, ...]]:
        modules = super().find_package_modules(package, package_dir)
        return [each for each in modules if each[1] in MODULES.get(package, (each[1],))]


os.chdir(HERE)
packages = [*MODULES, *(f"musetalk_enhance.{room}" for room in ROOMS)]
setup(
    name="musetalk-enhance-onnx",
    version=re.search(r'= "(.+)"', (PACKAGE / "_version.py").read_text())[1],
    description="Face restoration with ONNX files: musetalk_enhance's part without torch",
    license="Apache-2.0",
    python_requires=">=3.10",
    install_requires=[
        "numpy>=1.23",
        "opencv-python>=4.8",
        "onnxruntime>=1.15",
        "pillow>=9.1",
        "filelock>=3.9",
        "tqdm>=4.60",
    ],
    packages=packages,
    package_dir={"musetalk_enhance": os.path.relpath(PACKAGE, HERE)},
    package_data={"musetalk_enhance": ["py.typed"]},
    entry_points={"console_scripts": ["musetalk-enhance = musetalk_enhance.cli:main"]},
    cmdclass={"build_py": BuildPart},
)
