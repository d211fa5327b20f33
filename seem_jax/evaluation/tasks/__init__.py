"""What can be evaluated; each task gives a result per sample, and numbers from all results."""
