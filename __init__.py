"""Rheo: flow and diffusion action policies for robot control, trained from the command line."""

__version__ = "0.1.0"
