"""Graphs and hypergraphs over the parts of an event, and HEGR, which writes about them."""
