"""Feature extractors: (N,3,H,W) to a list of maps from fine to coarse, with `channels` and `strides`."""
