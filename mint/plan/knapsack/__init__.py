"""The exact multiple-choice knapsack solver, on arrays and numbers alone."""
