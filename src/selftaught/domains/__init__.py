"""Multiple-source adaptation: one predictor from many sources, for any mixture of them (DMSA)."""
