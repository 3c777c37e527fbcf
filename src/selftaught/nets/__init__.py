"""Encoders: modules [B C H W] -> [B D] with `width`, `lower`, `upper` and the name of the `last` part."""
