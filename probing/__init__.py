"""Graphs changed so that more can be seen of them: inner tensors shown, half precision rounded as a GPU rounds it."""
