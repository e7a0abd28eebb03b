"""Past one machine: the server's application on Ray Serve, and what a fleet of such servers would need."""
