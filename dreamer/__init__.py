"""DreamerV3 from scratch: learn a world model, dream in it, learn to act from the dreams."""
