"""Several replicas of a server: what a fleet of them would do, from what one of them takes."""
