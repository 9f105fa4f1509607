"""Training made cheap: what is minimised while all matrices of a compressed model are trained together."""
