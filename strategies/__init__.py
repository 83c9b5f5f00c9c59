"""One file per strategy; each holds one `Strategy` subclass."""
