"""Bundle in, tokens out: numpy only, a backend imported when it is chosen, never torch."""
