"""Everything about the distribution is declared in pyproject.toml; this file serves tools that ask for it by name."""

from setuptools import setup

setup()
