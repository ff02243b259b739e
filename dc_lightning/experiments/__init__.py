"""The papers' experiments: their cells and figures, how they are run, and how results are reported."""
