"""Speed and size, measured: scripts that print JSON. Nothing here is a test, and no test asserts a speed."""
