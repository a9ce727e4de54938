"""What pyproject.toml cannot say: the configurations lie beside the package, and are installed inside it."""
from pathlib import Path

from setuptools import find_packages, setup

configs = {f"mlic_jax.packaged.{'.'.join(path.parts)}": str(path)
           for path in {file.parent for file in Path("configs").rglob("*.py")}}
setup(packages=[*find_packages(include=["mlic_jax*"]), *configs], package_dir=configs)
