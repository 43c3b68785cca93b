"""The configs and the trained models become part of the wheel; all else is in setup.cfg."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = "configs", "pretrained/emoji64", "pretrained/emoji"


class Build(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            for folder in FOLDERS:
                target = Path(self.build_lib) / "vqd_jax" / folder
                shutil.copytree(
                    folder,
                    target,
                    ignore=shutil.ignore_patterns("__pycache__", "*.lock", "*.pyc"),
                    dirs_exist_ok=True,
                )


setup(cmdclass={"build_py": Build})
