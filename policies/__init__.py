"""Networks that act or judge. Knows torch, nothing else of this package."""
