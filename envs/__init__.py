"""Where experience comes from: environments, data, sources of batches."""
