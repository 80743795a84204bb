"""How good predictions are: counts, figures with their protocol, intervals, comparisons of runs."""
