"""The allocator: arrays in, arrays out."""
