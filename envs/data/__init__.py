"""Recorded data: reading them, checking them, writing them; numpy and h5py, no torch."""
