"""From a plan to a result with a certificate: the walk over the blocks, the run folder, the price."""
