"""What a person sees of a result: the page, the tables on the console, and several results side by side."""
