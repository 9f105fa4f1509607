"""Who gets how much of the budget."""
