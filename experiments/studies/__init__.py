"""The studies: each file is one, as a value, which `experiments.study` runs."""
