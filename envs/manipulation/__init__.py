"""Manipulation suites of other packages."""
