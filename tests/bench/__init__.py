"""Measurements, run by ``make bench``: medians and ratios of one run, no assertions about time."""
