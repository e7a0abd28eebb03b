"""Where every millisecond of an answer goes, and how far it is from what the machine could do."""
