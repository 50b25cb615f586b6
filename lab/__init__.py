"""What measures, compares, draws, and runs many things at once; `dreamer` imports none of it."""
