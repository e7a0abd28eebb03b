"""Answers judged: data sets, metrics, tables."""
