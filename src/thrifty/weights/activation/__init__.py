"""What the inputs of a matrix are rounded to while the model runs."""
