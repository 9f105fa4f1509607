"""Named points of the algebra: what a recipe calls by the name that the literature uses."""
