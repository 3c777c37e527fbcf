"""Personalised federated learning: local steps, their correction, what travels and what stays with a client (PFL)."""
