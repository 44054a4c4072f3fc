"""The model zoo's page: counts of the paper's backbones, the paper's own numbers, and what was measured."""
