"""Programs that make data sets and turn them into record files; each has --help."""
