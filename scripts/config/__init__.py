"""What was typed -> one checked configuration and the objects it names."""
