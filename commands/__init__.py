"""What each command prints: the only room that knows a terminal."""
