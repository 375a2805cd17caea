"""MuJoCo's own tasks, many at once: their formulas, their physics, their whole state."""
