"""What is learnt from a batch: one file, one algorithm."""
