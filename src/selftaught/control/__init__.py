"""Reinforcement learning that recognises its task from experience (MoSS)."""
