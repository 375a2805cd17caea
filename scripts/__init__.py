"""The programs: the only code that touches argv, disk, clock and terminal."""
