"""The network itself: fewer neurons, heads, experts, channels, states and blocks. One method a file; `base` says how one is written."""
