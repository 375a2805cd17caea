"""Values: one folder per role, every file one constructor."""
