"""One file per task; each holds one `Task`."""
