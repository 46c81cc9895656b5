"""Is the transfer good? Comparisons, reports and pictures."""
