"""Our metrics on stored cases with the numbers of the metric owners' own code."""
