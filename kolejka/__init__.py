"""Kolejka: a strict, measured task system for clusters."""

__version__ = "0.1.0"
