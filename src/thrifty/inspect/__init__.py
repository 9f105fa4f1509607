"""What explains a model and changes nothing."""
