"""The torch modules: run in eager mode they are the reference, traced they become the graphs."""
