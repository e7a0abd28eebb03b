"""Tests of the server, over small bundles."""
