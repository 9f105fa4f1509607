"""What gives back a part of what solving lost, all matrices of a block together."""
