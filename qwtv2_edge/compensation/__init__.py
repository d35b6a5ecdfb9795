"""Channel-wise affine compensation: fit on accumulators, gate on held-out samples, fold into constants."""
