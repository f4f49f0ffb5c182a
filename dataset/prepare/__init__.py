"""What is done once, before the first step: layouts, checks, packing."""
