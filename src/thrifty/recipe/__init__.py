"""The recipe language: text to a recipe (`parse`), a recipe and a model to what is done to each linear (`resolve`)."""
