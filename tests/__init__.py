"""Tests of Kolejka, filed by what they need; run by pytest from the project's root."""
