"""Makes the stubs while the package is built; they are not kept in git."""

import pathlib
import sys

from setuptools import setup
from setuptools.command.build_py import build_py

# A build in isolation does not look beside this file by itself.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import generate_stubs


class BuildWithStubs(build_py):
    def run(self):
        super().run()
        generate_stubs.generate(pathlib.Path(self.build_lib))


setup(cmdclass={"build_py": BuildWithStubs})
